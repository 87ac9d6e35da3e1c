from pathlib import Path

import pytest

from moe_asr.data.manifests import Utterance, write_manifest
from moe_asr.errors import UserError
from moe_asr.methods.adaptations import find_adaptations

UTTERANCES = [
    Utterance(f"u{n}", f"{n}.wav", 16000, 16000, "text", speaker=speaker, accent=accent)
    for n, (speaker, accent) in enumerate([("mia", "north"), ("ben", ""), ("mia", "south")])
]


@pytest.fixture
def manifest(tmp_path):
    write_manifest(tmp_path / "test.jsonl", UTTERANCES)
    return tmp_path / "test.jsonl"


@pytest.fixture
def folders(tmp_path):
    for speaker in ("ben", "mia", "zoe"):
        (tmp_path / speaker / "final").mkdir(parents=True)
        (tmp_path / speaker / "final/adaptation.yaml").touch()
    return tmp_path


def test_one_folder_for_all(manifest):
    found = find_adaptations("exp/saml/final", manifest)
    assert found.key is None and found.folders == {"": Path("exp/saml/final")}


def test_the_folder_of_each_speaker_of_the_manifest(folders, manifest):
    found = find_adaptations(f"{folders}/{{speaker}}/final", manifest)
    assert found.key == "speaker"
    assert list(found.folders.items()) == [(name, folders / name / "final") for name in ("ben", "mia")]
    for name, size in (("ben", 300), ("mia", 501), ("zoe", 9000)):
        (folders / name / "final/adapter").write_bytes(b"x" * size)
    assert found.bytes_of_one == 400


@pytest.mark.parametrize(
    "pattern, says",
    [
        ("{speaker}/gone", "no adaptation for speaker ben in .*ben/gone: train it first"),
        ("{spk}/final", r"use one of the placeholders {speaker}, {accent}, {language}$"),
        ("{speaker}/{accent}/final", "use one of the placeholders"),
        ("{accent}/final", "utterance u1 has no accent"),
    ],
)
def test_what_cannot_be_resolved_is_one_line(folders, manifest, pattern, says):
    with pytest.raises(UserError, match=says) as error:
        find_adaptations(f"{folders}/{pattern}", manifest)
    assert "\n" not in str(error.value)


def test_a_label_cannot_lead_out_of_the_folder(folders, tmp_path):
    write_manifest(tmp_path / "bad.jsonl", [Utterance("u", "u.wav", 16000, 16000, "text", speaker="../zoe")])
    (tmp_path / "exp").mkdir()
    with pytest.raises(UserError, match="bad.jsonl names '../zoe', which cannot be part of a folder's name"):
        find_adaptations(f"{folders}/exp/{{speaker}}/final", tmp_path / "bad.jsonl")

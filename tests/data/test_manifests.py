import gzip
import json
import subprocess
import sys

import pytest

from moe_asr.data.manifests import Utterance, domain_names, read_manifest, read_manifests, summary, write_manifest
from moe_asr.errors import UserError

WHOLE = Utterance("a", "/x/a.wav", 24000, 16000, "hello world", "anna", "scottish", "en")
PART = Utterance("b", "/x/b.flac", 80000, 8000, "你好", start=1.25, duration=2.5)
PLAIN = Utterance("c", "/x/c.wav", 16000, 16000, "plain")


@pytest.mark.parametrize("name", ["m.jsonl", "m.jsonl.gz"])
def test_what_is_written_is_read(tmp_path, name):
    write_manifest(tmp_path / name, [WHOLE, PART, PLAIN])
    assert read_manifest(tmp_path / name) == [WHOLE, PART, PLAIN]


def test_lhotse_reads_it(tmp_path):
    lhotse = pytest.importorskip("lhotse")
    write_manifest(tmp_path / "m.jsonl.gz", [WHOLE, PART])
    whole, part = lhotse.CutSet.from_file(tmp_path / "m.jsonl.gz").to_eager()
    lhotse.qa.validate(lhotse.CutSet.from_cuts([whole, part]))
    supervision = whole.supervisions[0]
    assert (whole.id, whole.duration, whole.recording.num_samples, whole.sampling_rate) == ("a", 1.5, 24000, 16000)
    assert (supervision.text, supervision.speaker, supervision.language) == ("hello world", "anna", "en")
    assert supervision.custom == {"accent": "scottish"} and whole.recording.sources[0].source == "/x/a.wav"
    assert (part.start, part.duration, part.recording.duration) == (1.25, 2.5, 10.0)
    assert part.supervisions[0].text == "你好" and part.supervisions[0].custom is None


def test_reads_what_lhotse_writes(tmp_path):
    lhotse = pytest.importorskip("lhotse")
    write_manifest(tmp_path / "m.jsonl", [WHOLE, PART, PLAIN])
    lhotse.CutSet.from_file(tmp_path / "m.jsonl").to_eager().to_file(tmp_path / "again.jsonl.gz")
    assert read_manifest(tmp_path / "again.jsonl.gz") == [WHOLE, PART, PLAIN]


def test_same_content_same_bytes(tmp_path):
    write_manifest(tmp_path / "a.jsonl.gz", [WHOLE])
    write_manifest(tmp_path / "b.jsonl.gz", [WHOLE])
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()


def test_seconds():
    assert (WHOLE.seconds, PART.seconds) == (1.5, 2.5)
    assert Utterance("d", "", 16000, 16000, "", start=0.25).seconds == 0.75


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda cut: cut.update(type="MixedCut"), "line 2: a MixedCut"),
        (lambda cut: cut.update(supervisions=[]), "line 2: 0 supervisions"),
        (lambda cut: cut.pop("recording"), "line 2: not a lhotse cut .KeyError: 'recording'"),
        (lambda cut: cut["recording"].update(transforms=[{"name": "Speed"}]), "line 2: .* without transforms"),
        (lambda cut: cut["recording"]["sources"][0].update(type="url"), "line 2: .* one plain audio file"),
    ],
)
def test_other_cuts_are_refused(tmp_path, change, message):
    write_manifest(tmp_path / "m.jsonl", [WHOLE])
    line = (tmp_path / "m.jsonl").read_text()
    cut = json.loads(line)
    change(cut)
    (tmp_path / "m.jsonl").write_text(line + json.dumps(cut))
    with pytest.raises(UserError, match=message):
        read_manifest(tmp_path / "m.jsonl")


def test_no_json_is_refused(tmp_path):
    (tmp_path / "m.jsonl").write_text("id\taudio\ttext\n")
    with pytest.raises(UserError, match="line 1: not a lhotse cut"):
        read_manifest(tmp_path / "m.jsonl")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="no manifest at .*none.jsonl"):
        read_manifest(tmp_path / "none.jsonl")


@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: b"no gzip"])
def test_damaged_file_is_named(tmp_path, damage):
    path = tmp_path / "m.jsonl.gz"
    path.write_bytes(damage(gzip.compress(b'{"a": 1}' * 0 + b"\n" * 5000)))
    with pytest.raises(UserError, match="m.jsonl.gz is damaged or cut off"):
        read_manifest(path)


def test_several_manifests_make_one_set(tmp_path):
    write_manifest(tmp_path / "a.jsonl", [WHOLE])
    write_manifest(tmp_path / "b.jsonl", [PART])
    write_manifest(tmp_path / "empty.jsonl", [])
    paths = [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl", "empty.jsonl")]
    assert read_manifests(paths) == [WHOLE, PART]
    with pytest.raises(UserError, match="id a occurs twice"):
        read_manifests([paths[0], paths[0]])
    with pytest.raises(UserError, match="no utterances in .*empty"):
        read_manifests(paths[2:])
    with pytest.raises(UserError, match="no manifests given"):
        read_manifests([])


def test_domain_names_are_sorted_and_complete():
    utterances = [WHOLE, Utterance("d", "", 1, 1, "", "bob", "french")]
    assert domain_names(utterances, "accent") == ["french", "scottish"]
    assert domain_names(utterances * 2, "speaker") == ["anna", "bob"]
    with pytest.raises(UserError, match="1 of 3 utterances have no accent"):
        domain_names([*utterances, PLAIN], "accent")


def test_summary():
    assert summary([WHOLE, PART]) == "2 utterances, 0.00 h, 1 speaker, 1 accent, 1 language"
    hours = [Utterance(str(i), "", 16000 * 1800, 16000, "", speaker=str(i)) for i in range(3)]
    assert summary(hours) == "3 utterances, 1.50 h, 3 speakers"


def test_data_preparation_imports_no_torch():
    modules = ["manifests", "checks", "text", "tokens", "tables", "probe", "audio", "espeak", "download"]
    code = "import sys, " + ", ".join(f"moe_asr.data.{m}" for m in modules)
    code += "\nassert not {'torch', 'lhotse'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

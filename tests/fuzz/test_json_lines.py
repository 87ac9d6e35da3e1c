"""Manifests, hypotheses and what else is read as JSON: what is accepted is written and read again as it was."""

import gzip
import json
import math

import pytest
from hostile import REFUSED, altered, attempt, damaged, files, hostile
from hypothesis import example, given
from hypothesis import strategies as st

from moe_asr.data.manifests import Utterance, read_manifest, write_manifest
from moe_asr.decoding.stream import HypothesisStream
from moe_asr.scoring.hypotheses import read_hypotheses, read_system
from moe_asr.strict_json import parse_json

UTTERANCES = [
    Utterance("a", "/x/a.wav", 24000, 16000, "hello world", "anna", "scottish", "en", raw_text="Hello, world!"),
    Utterance("b", "/x/b.flac", 80000, 8000, "你好", start=1.25, duration=2.5, audio_crc32="00ff00ff"),
]
HYPOTHESIS = {"id": "a", "ref": "one two", "hyp": "one too", "speaker": "anna", "accent": "", "duration": 1.5}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    path = tmp_path_factory.mktemp("manifest") / "m.jsonl"
    write_manifest(path, UTTERANCES)
    return path.read_bytes()


def check_manifest(path):
    found = attempt(read_manifest, path)
    if found is not REFUSED:
        write_manifest(path.with_name("again.jsonl"), found)
        assert read_manifest(path.with_name("again.jsonl")) == found
        for one in found:
            first, count = round(one.start * one.sample_rate), round(one.seconds * one.sample_rate)
            assert one.id and 0 <= first < first + count <= one.num_samples, "no part of its recording"


@hostile
@given(data=st.data())
def test_damaged_manifest(data, manifest, tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes(data.draw(damaged(manifest)))
    check_manifest(path)


@hostile
@given(data=st.data())
def test_manifest_with_other_values(data, manifest, tmp_path):
    path = tmp_path / "m.jsonl"
    lines = [data.draw(altered(json.loads(line))) for line in manifest.splitlines()]
    path.write_bytes(b"\n".join(lines))
    check_manifest(path)


@pytest.mark.parametrize(
    "change",  # each was taken as it is, or ended in a traceback
    [
        lambda cut: cut.update(id=5),
        lambda cut: cut.update(start=math.nan),
        lambda cut: cut.update(start=-1),
        lambda cut: cut.update(duration=9),
        lambda cut: cut["recording"].update(sampling_rate=0),
        lambda cut: cut["recording"].update(num_samples=True),
        lambda cut: cut["recording"].update(num_samples=10**400),
        lambda cut: cut["recording"].update(duration=3.0),
        lambda cut: cut["supervisions"][0].update(text=["a"]),
        lambda cut: cut["supervisions"][0].update(start=0.5),
        lambda cut: cut["supervisions"][0].update(custom={"accent": 7}),
        lambda cut: cut["supervisions"][0].update(text="\ud800"),
        lambda cut: cut.update(id="a\nb"),
    ],
)
def test_cuts_that_are_refused(change, manifest, tmp_path):
    cut = json.loads(manifest.splitlines()[0])
    change(cut)
    (tmp_path / "m.jsonl").write_text(json.dumps(cut))
    assert attempt(read_manifest, tmp_path / "m.jsonl") is REFUSED


@hostile
@given(data=st.data())
def test_damaged_gzip(data, manifest, tmp_path):
    path = tmp_path / "m.jsonl.gz"
    path.write_bytes(data.draw(damaged(gzip.compress(manifest, mtime=0))))
    found = attempt(read_manifest, path)
    assert found is REFUSED or found == UTTERANCES[: len(found)], "its checksum keeps all else out"


@hostile
@given(
    content=st.one_of(files((json.dumps(HYPOTHESIS) + "\n").encode() * 1, signs=['"id"', "a"]), altered([HYPOTHESIS])),
    lines=st.booleans(),
)
@example(content=b'[{"id": "a", "ref": "", "hyp": "", "duration": NaN}]', lines=True)
@example(content=b'[{"id": "\\ud800", "ref": "", "hyp": ""}]', lines=True)
@example(content=b"[" * 100000, lines=False)
def test_hypotheses(content, lines, tmp_path):
    if lines and content.startswith(b"[{"):
        content = b"".join(json.dumps(each).encode() + b"\n" for each in json.loads(content))
    (tmp_path / "hyps.jsonl").write_bytes(content)
    (tmp_path / "system.json").write_text("{}")
    found = attempt(read_hypotheses, tmp_path)
    if found is not REFUSED:
        assert len(found) == content.count(b"\n") and len({one.id for one in found}) == len(found)
        assert all(math.isfinite(one.duration) and one.id.isprintable() for one in found)
        json.dumps([one.hyp + one.ref for one in found], ensure_ascii=False).encode()


@hostile
@given(content=files((json.dumps(HYPOTHESIS) + "\n").encode(), b'{"id": ["a"]}\n'))
def test_decode_that_goes_on(content, tmp_path):
    (tmp_path / "decode.json").write_text("{}")
    (tmp_path / "hyps.jsonl").write_bytes(content)
    stream = attempt(HypothesisStream, tmp_path, {}, ["a", "b"])
    if stream is not REFUSED:
        with stream:
            assert len(stream.missing(["a", "b"])) == 2 - content.count(b"\n")


@hostile
@given(content=st.one_of(files(b'{"normaliser": "english"}'), altered({"normaliser": "english", "seconds": 1.5})))
def test_system(content, tmp_path):
    (tmp_path / "system.json").write_bytes(content)
    found = attempt(read_system, tmp_path)
    assert found is REFUSED or isinstance(found, dict)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@hostile
@given(value=json_values, ascii=st.booleans())
def test_json_is_read_as_it_was_written(value, ascii):
    assert parse_json(json.dumps(value, ensure_ascii=ascii)) == value


@pytest.mark.parametrize(
    "text",
    ["NaN", "[-Infinity]", "1e999", '{"a": 1, "a": 2}', '"\\ud800"', "[" * 100000, "9" * 5000, "", b"\xff", "{'a': 1}"],
)
def test_what_is_no_json(text):
    with pytest.raises(ValueError):
        parse_json(text)

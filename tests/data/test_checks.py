import dataclasses
import json
import zlib
from pathlib import Path

import pytest
import soundfile

from moe_asr.data.checks import CheckConfig, Rejection, check, require_few, write_rejections
from moe_asr.data.manifests import Utterance
from moe_asr.data.tables import Row
from moe_asr.errors import UserError


@pytest.fixture
def row(make_audio):
    """A row which is accepted: two seconds of noise."""
    return Row("a", make_audio(seconds=2.0), "Hello, World!", "anna", "scottish", "en", line=2)


def outcome(row, **changes):
    utterances, rejections = check([dataclasses.replace(row, **changes)], "english", CheckConfig())
    assert len(utterances) + len(rejections) == 1
    return utterances[0] if utterances else (rejections[0].reason, rejections[0].detail)


def test_a_sound_row_becomes_an_utterance(row):
    crc32 = f"{zlib.crc32(soundfile.read(row.audio, dtype='float32')[0]):08x}"
    texts = {"text": "hello world", "raw_text": "Hello, World!"}
    expected = Utterance("a", row.audio, 32000, 16000, "", "anna", "scottish", "en", audio_crc32=crc32)
    assert outcome(row) == dataclasses.replace(expected, **texts)
    assert outcome(row, text="hello world").raw_text == ""


def test_a_part_of_a_recording(row):
    part = outcome(row, start="0.5", duration="1.25")
    assert (part.start, part.duration, part.num_samples) == (0.5, 1.25, 32000)
    assert outcome(row, start="0.5").seconds == 1.5
    assert outcome(row, start="0", duration="1.5").seconds == 1.5
    assert outcome(row, start="0.5", duration="1.52").seconds == 1.5  # rounded beyond the end


def test_a_declared_duration_close_to_the_file_is_accepted(row):
    assert outcome(row, duration="1.97") == outcome(row)


@pytest.mark.parametrize(
    "changes, reason, detail",
    [
        ({"problem": "not UTF-8: byte 0xe9"}, "not UTF-8", "byte 0xe9"),
        ({"text": "caf\ufffd"}, "not UTF-8", "U+FFFD"),
        ({"text": ""}, "empty text", ""),
        ({"text": "..."}, "empty text after normalisation", "..."),
        ({"id": ""}, "bad id", "''"),
        ({"id": "a b"}, "bad id", "'a b'"),
        ({"audio": ""}, "no audio path", ""),
        ({"audio": "/none.wav"}, "no such audio file", ""),
        ({"duration": "3.0"}, "wrong duration", "declared 3 s, the file has 2.000 s"),
        ({"duration": "1.0"}, "wrong duration", "declared 1 s, the file has 2.000 s"),
        ({"duration": "long"}, "bad start or duration", "'long'"),
        ({"duration": "nan"}, "bad start or duration", "nan"),
        ({"start": "0_1", "duration": "1"}, "bad start or duration", "'0_1'"),
        ({"id": "a\x00b"}, "bad id", r"'a\x00b'"),
        ({"start": "1", "duration": "1.5"}, "wrong duration", "1 to 2.5 s is not within the file's 2.000 s"),
        ({"start": "-1", "duration": "1.5"}, "wrong duration", "-1 to"),
        ({"start": "3"}, "too short", "-1.000 s"),
        ({"start": "1", "duration": "0.05"}, "too short", "0.050 s, at least 0.1 s"),
        ({"start": "1", "duration": "0"}, "too short", "0.000 s"),
    ],
)
def test_each_fault_has_its_reason(row, changes, reason, detail):
    found = outcome(row, **changes)
    assert found[0] == reason and detail in found[1]


def test_durations_have_limits(row):
    rows = [row]
    assert check(rows, "english", CheckConfig(max_duration=1.5))[1] == [
        Rejection(row, "too long", "2.000 s, at most 1.5 s are taken")
    ]
    assert check(rows, "english", CheckConfig(min_duration=2.5))[1][0].reason == "too short"


def test_the_first_of_equal_ids_stays(row):
    rows = [row, dataclasses.replace(row, text="other", line=3), dataclasses.replace(row, id="b", line=4)]
    utterances, rejections = check(rows, "english", CheckConfig())
    assert [(u.id, u.text) for u in utterances] == [("a", "hello world"), ("b", "hello world")]
    assert rejections == [Rejection(rows[1], "duplicate id", "first in line 2")]


def test_order_is_kept_for_any_number_of_jobs(row, make_audio):
    rows = [
        Row(f"u{i:02d}", make_audio(f"{i}.wav", seconds=0.05 + 0.1 * (i % 5), seed=i), f"text {i}", line=i + 2)
        for i in range(30)
    ]
    results = [check(rows, "none", CheckConfig(num_jobs=jobs)) for jobs in (1, 4)]
    assert results[0] == results[1]
    utterances, rejections = results[0]
    assert [u.id for u in utterances] == [r.id for r in rows if int(r.id[1:]) % 5]
    assert [r.row.id for r in rejections] == [r.id for r in rows if not int(r.id[1:]) % 5]


def test_corrupt_audio_is_rejected(row):
    data = Path(row.audio).read_bytes()
    Path(row.audio).write_bytes(data[:1000])
    assert outcome(row) == ("truncated audio", "956 of 64000 bytes of samples")


def test_unknown_normaliser_is_found_first(row):
    with pytest.raises(UserError, match="unknown text normaliser 'greek'"):
        check([], "greek", CheckConfig())


def test_rejections_are_written(tmp_path, row):
    write_rejections(tmp_path / "r.jsonl", [Rejection(dataclasses.replace(row, text="你好"), "too long", "40 s")])
    assert json.loads((tmp_path / "r.jsonl").read_text(encoding="utf-8")) == {
        "line": 2,
        "id": "a",
        "audio": row.audio,
        "text": "你好",
        "reason": "too long",
        "detail": "40 s",
    }


def test_too_many_rejections_stop(row):
    rejections = [Rejection(row, "empty text")] * 4 + [Rejection(row, "too long")] * 2
    require_few("t.tsv", 120, rejections, 0.05, "r.jsonl")
    with pytest.raises(
        UserError,
        match=r"t.tsv: 6 of 100 utterances rejected \(6.0%, limit 5.0%\): 4 empty text, 2 too long; .* in r.jsonl",
    ):
        require_few("t.tsv", 100, rejections, 0.05, "r.jsonl")


def test_nothing_left_stops_whatever_the_limit(row):
    with pytest.raises(UserError, match="1 of 1 utterances rejected"):
        require_few("t.tsv", 1, [Rejection(row, "empty text")], 1.0, "r.jsonl")
    with pytest.raises(UserError, match="t.tsv has no utterances"):
        require_few("t.tsv", 0, [], 0.05, "r.jsonl")

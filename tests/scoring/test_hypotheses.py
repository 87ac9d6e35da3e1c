import json

import pytest

from moe_asr.errors import UserError
from moe_asr.scoring.hypotheses import Hypothesis, read_hypotheses, read_system

GOOD = {"id": "a", "ref": "é x", "hyp": "", "speaker": "s", "accent": "us", "language": "en", "duration": 1.5}


def decode_folder(folder, lines, done=True):
    folder.mkdir(exist_ok=True)
    data = b"".join((x if isinstance(x, bytes) else json.dumps(x).encode()) + b"\n" for x in lines)
    (folder / "hyps.jsonl").write_bytes(data)
    if done:
        (folder / "system.json").write_text("{}")
    return folder


def test_reads_what_decoding_writes(tmp_path):
    lines = [
        GOOD | {"tokens": [1, 2]},
        {"id": "b", "ref": "", "hyp": "y"},
        GOOD | {"id": "c", "accent": None, "duration": 2},
    ]
    found = read_hypotheses(decode_folder(tmp_path, lines))
    assert found == [
        Hypothesis("a", "é x", "", "s", "us", "en", 1.5),
        Hypothesis("b", "", "y"),
        Hypothesis("c", "é x", "", "s", "", "en", 2),
    ]


@pytest.mark.parametrize(
    "lines, message",
    [
        ([GOOD, {"id": "b", "hyp": ""}], "hyps.jsonl:2: no 'ref'"),
        ([GOOD, GOOD | {"hyp": 3}], "hyps.jsonl:2: 'hyp' is 3, not a str"),
        ([GOOD | {"duration": "long"}], "hyps.jsonl:1: 'duration' is 'long', not a float"),
        ([GOOD, GOOD | {"id": "b"}, GOOD], "hyps.jsonl:3: utterance 'a' was already on line 1"),
        ([b'{"id": "\xff"}'], "hyps.jsonl:1: not UTF-8"),
        ([b'{"id": '], "hyps.jsonl:1: not JSON"),
        ([b""], "hyps.jsonl:1: not JSON"),
        ([b"[1]"], "hyps.jsonl:1: not a JSON object"),
        ([], "hyps.jsonl holds no utterance"),
    ],
)
@pytest.mark.parametrize("partial", [False, True])
def test_bad_lines_are_one_clear_line(tmp_path, lines, message, partial):
    with pytest.raises(UserError) as caught:
        read_hypotheses(decode_folder(tmp_path, lines, done=not partial), allow_partial=partial)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_missing_folder(tmp_path):
    with pytest.raises(UserError, match=r"no hyps.jsonl in .*nothing"):
        read_hypotheses(tmp_path / "nothing")


def test_unfinished_decode_is_refused_unless_asked_for(tmp_path, capsys):
    decode_folder(tmp_path, [GOOD], done=False)
    with open(tmp_path / "hyps.jsonl", "ab") as file:
        file.write(b'{"id": "b", "ref": "x", "hy')
    with pytest.raises(UserError, match=r"has not ended .*--allow_partial true"):
        read_hypotheses(tmp_path)
    assert [h.id for h in read_hypotheses(tmp_path, allow_partial=True)] == ["a"]
    assert "not complete, scoring 1 utterances" in capsys.readouterr().err


def test_cut_off_file_is_refused_even_when_said_to_be_done(tmp_path):
    decode_folder(tmp_path, [GOOD, GOOD | {"id": "b"}])
    data = (tmp_path / "hyps.jsonl").read_bytes()
    (tmp_path / "hyps.jsonl").write_bytes(data[:-9])
    with pytest.raises(UserError, match="hyps.jsonl:2: the last line is cut off"):
        read_hypotheses(tmp_path, allow_partial=True)


def test_system_facts(tmp_path):
    with pytest.raises(UserError, match="no system.json"):
        read_system(tmp_path)
    for text, message in (("{", "not JSON"), ("[]", "not a JSON object"), ("\udcff", "not JSON")):
        (tmp_path / "system.json").write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(UserError, match=message):
            read_system(tmp_path)
    (tmp_path / "system.json").write_text('{"model": "m"}')
    assert read_system(tmp_path) == {"model": "m"}

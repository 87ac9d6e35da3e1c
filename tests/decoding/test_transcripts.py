import json
from pathlib import Path

import pytest

from moe_asr.decoding.transcripts import Piece, Transcript, output_files, read_formats, save
from moe_asr.errors import UserError

PIECES = [Piece(0.5, 2.0, "hello you"), Piece(2.5, 3.0, ""), Piece(3.0, 4.12345, "你好", {"truncated": True})]
TRANSCRIPT = Transcript("a/b.wav", 5.00009, PIECES, {"model": "m"}, "breaks off")


def test_forms_to_the_letter():
    assert TRANSCRIPT.write("text") == "hello you\n你好\n"
    assert TRANSCRIPT.write("srt") == (
        "1\n00:00:00,500 --> 00:00:02,000\nhello you\n\n2\n00:00:03,000 --> 00:00:04,123\n你好\n"
    )  # fmt: skip
    assert json.loads(TRANSCRIPT.write("json")) == {
        "file": "a/b.wav", "duration": 5.0, "model": "m", "problem": "breaks off", "text": "hello you 你好",
        "pieces": [
            {"start": 0.5, "end": 2.0, "text": "hello you"}, {"start": 2.5, "end": 3.0, "text": ""},
            {"start": 3.0, "end": 4.123, "text": "你好", "truncated": True},
        ],
    }  # fmt: skip
    assert TRANSCRIPT.write("json", indent=None).count("\n") == 1
    silent = Transcript("a.wav", 1.0, [])
    assert silent.write("text") == silent.write("srt") == "" and json.loads(silent.write("json"))["pieces"] == []


def test_formats():
    assert read_formats("text") == ("text",) and read_formats("srt, json,srt") == ("srt", "json")
    for names in ("txt", "", "text,"):
        with pytest.raises(UserError, match="is none of text, json, srt"):
            read_formats(names)


def names(recordings, formats=("text",)):
    found = output_files({Path(p): Path(n) for p, n in recordings.items()}, "out", formats)
    return {str(path): [str(file) for file in files.values()] for path, files in found.items()}


def test_names_of_files():
    assert names({"x/a.b.wav": "a.b.wav"}, ("text", "srt")) == {"x/a.b.wav": ["out/a.b.txt", "out/a.b.srt"]}
    assert names({"x/a.wav": "a.wav", "x/a.mp3": "a.mp3", "x/y/a.wav": "y/a.wav"}) == {
        "x/a.wav": ["out/a.wav.txt"], "x/a.mp3": ["out/a.mp3.txt"], "x/y/a.wav": ["out/y/a.txt"],
    }  # fmt: skip
    for clash in ({"x/a.wav": "a.wav", "y/a.wav": "a.wav"}, {"a.wav": "a.wav", "a.mp3": "a.mp3", "b": "a.wav.ogg"}):
        with pytest.raises(UserError, match="would both be written to out/a.wav.txt: transcribe them apart"):
            names(clash)


def test_saving(tmp_path):
    files = {"text": tmp_path / "sub/b.txt", "srt": tmp_path / "sub/b.srt"}
    save(TRANSCRIPT, files)
    assert sorted(p.name for p in (tmp_path / "sub").iterdir()) == ["b.srt", "b.txt"]
    assert files["text"].read_text("utf-8") == "hello you\n你好\n"

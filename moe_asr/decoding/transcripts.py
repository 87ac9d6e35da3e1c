"""What was said in a recording, as text, JSON and subtitles, and the files that it goes to."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from moe_asr.decoding.subtitles import Cue, srt
from moe_asr.errors import UserError
from moe_asr.files import atomic_write

SUFFIXES = {"text": ".txt", "json": ".json", "srt": ".srt"}
"""The formats, and how the names of their files end."""


@dataclass(frozen=True)
class Piece:
    """A stretch of a recording, in seconds, and what was said in it; `facts` are what else is known of it."""

    start: float
    end: float
    text: str
    facts: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Transcript:
    """All pieces of a recording in order.

    Args:
        file: as it was named
        duration: in seconds
        facts: what holds for all of it, such as the model
        problem: what is wrong with the file; empty for nothing
    """

    file: str
    duration: float
    pieces: Sequence[Piece]
    facts: Mapping[str, object] = field(default_factory=dict)
    problem: str = ""

    def write(self, format: str, indent: int | None = 2) -> str:
        """In one of the formats of `SUFFIXES`; text has a line for each piece in which something was said."""
        if format == "srt":
            return srt([Cue(piece.start, piece.end, piece.text) for piece in self.pieces])
        if format == "text":
            return "".join(f"{piece.text}\n" for piece in self.pieces if piece.text)
        pieces = [{"start": round(p.start, 3), "end": round(p.end, 3), "text": p.text, **p.facts} for p in self.pieces]
        content = {"file": self.file, "duration": round(self.duration, 3), **self.facts}
        content |= {"problem": self.problem} if self.problem else {}
        content |= {"text": " ".join(p.text for p in self.pieces if p.text), "pieces": pieces}
        return json.dumps(content, indent=indent, ensure_ascii=False) + "\n"


def read_formats(names: str) -> tuple[str, ...]:
    """From `text,srt`.

    Raises:
        UserError: one is unknown or none is given.
    """
    formats = tuple(dict.fromkeys(name.strip() for name in names.split(",")))
    for name in formats:
        if name not in SUFFIXES:
            raise UserError(f"format {name!r} is none of {', '.join(SUFFIXES)}; several are separated by commas")
    return formats


def output_files(recordings: Mapping[Path, Path], out_dir: str, formats: Sequence[str]) -> dict[Path, dict[str, Path]]:
    """Where the transcript of each recording goes, in each format.

    `a.wav` becomes `a.txt`, in the same folder as below the folder that was named; where there is an `a.mp3` as well
    they become `a.wav.txt` and `a.mp3.txt`.

    Args:
        recordings: from `find_recordings`

    Raises:
        UserError: two would still go to one file
    """
    stems = Counter(name.with_suffix("") for name in recordings.values())
    found: dict[Path, dict[str, Path]] = {}
    taken: dict[Path, Path] = {}
    for path, name in recordings.items():
        stem = name.with_suffix("") if stems[name.with_suffix("")] == 1 else name
        found[path] = {each: Path(out_dir) / stem.with_name(stem.name + SUFFIXES[each]) for each in formats}
        for target in found[path].values():
            other = taken.setdefault(target, path)
            if other != path:
                raise UserError(f"{other} and {path} would both be written to {target}: transcribe them apart")
    return found


def shown(path: Path) -> str:
    """A path as it can be printed and written, whatever bytes are in its name."""
    return os.fsencode(path).decode("utf-8", "replace")


def save(transcript: Transcript, files: Mapping[str, Path]) -> None:
    """Writes a transcript to the file of each format, each whole or not at all."""
    for format, path in files.items():
        with atomic_write(path) as file:
            file.write(transcript.write(format))

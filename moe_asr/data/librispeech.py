"""Reads LibriSpeech as it is unpacked: `train-clean-100/19/198/19-198-0000.flac`, `19-198.trans.txt`, SPEAKERS.TXT."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from moe_asr.data.lines import read_lines
from moe_asr.data.tables import Row
from moe_asr.errors import UserError

ADVICE = "get it from https://www.openslr.org/12 and give the folder that holds LibriSpeech/ as --corpus_dir"


@dataclass(frozen=True)
class Reader:
    """A line of SPEAKERS.TXT: who read, and in which part of the corpus."""

    name: str
    sex: str
    part: str


def read_readers(corpus: str | Path) -> dict[str, Reader]:
    """The speakers by their number, from SPEAKERS.TXT: lines `19   | F | train-clean-100  | 25.19 | Kara Shallenberg`.

    Raises:
        UserError: the file is missing, or a line is another or not UTF-8.
    """
    path = Path(corpus) / "SPEAKERS.TXT"
    if not path.is_file():
        raise UserError(f"no {path}, which LibriSpeech comes with: {ADVICE}")
    readers = {}
    for number, line in enumerate(read_lines(path), 1):
        if line.strip() and not line.startswith(";"):
            fields = [field.strip() for field in line.split("|", 4)]  # a name may hold a | too
            if len(fields) < 5 or not _is_number(fields[0]) or fields[0] in readers:
                raise UserError(
                    f"{path}:{number}: expected 'number | sex | part | minutes | name', each once, not '{line}'"
                )
            readers[fields[0]] = Reader(name=fields[4], sex=fields[1], part=fields[2])
    return readers


def read_part(corpus: str | Path, part: str, speakers: Collection[str] | None = None) -> list[Row]:
    """One row for each transcript, sorted by speaker, chapter and utterance.

    Args:
        corpus: The folder LibriSpeech.
        part: Such as train-clean-100.
        speakers: Numbers of those wanted; None for all.

    Raises:
        UserError: the part, one of the speakers or the transcript of a chapter is missing, or a transcript is no such
            file.
    """
    folder = Path(corpus) / part
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: {ADVICE}")
    found = {path.name: path for path in folder.iterdir() if _is_number(path.name) and path.is_dir()}
    if speakers is not None:
        _check_speakers(corpus, part, [name for name in speakers if name not in found])
        found = {name: found[name] for name in speakers}
    rows = []
    for speaker in sorted(found, key=int):
        for chapter in sorted((path for path in found[speaker].iterdir() if path.is_dir()), key=_number):
            rows += _read_chapter(chapter, speaker)
    if not rows:
        raise UserError(f"{folder} holds no speaker's folder, such as {folder / '19' / '198'}: {ADVICE}")
    return rows


def _check_speakers(corpus: str | Path, part: str, missing: list[str]) -> None:
    if missing:
        readers = read_readers(corpus)
        known = readers.get(missing[0])
        where = f"is in {known.part}" if known else "is not in SPEAKERS.TXT"
        why = "whose folder is missing: unpack the part again" if known and known.part == part else where
        raise UserError(f"no speaker {missing[0]} in {Path(corpus) / part}, {why}")


def _read_chapter(folder: Path, speaker: str) -> list[Row]:
    path = folder / f"{speaker}-{folder.name}.trans.txt"
    if not path.is_file():
        raise UserError(f"no transcript {path}: unpack the corpus again")
    rows = []
    for number, line in enumerate(read_lines(path), 1):
        name, _, text = line.strip().partition(" ")
        chapter, _, utterance = name.rpartition("-")
        if chapter != f"{speaker}-{folder.name}" or not _is_number(utterance):
            raise UserError(f"{path}:{number}: expected '{speaker}-{folder.name}-0000 TEXT', not '{line}'")
        audio = str((folder / f"{name}.flac").absolute())
        rows.append(Row(name, audio, text, speaker=speaker, language="en"))
    return rows


def _number(path: Path) -> tuple[int, str]:
    return (int(path.name) if _is_number(path.name) else 0, path.name)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 20

"""Subtitles in SubRip's format (SRT)."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

LINE, LINES = 42, 2  # most columns of a line, and lines of a cue, as is usual for films


@dataclass(frozen=True)
class Cue:
    """A text and the time, in seconds, for which it is shown."""

    start: float
    end: float
    text: str


def srt(cues: Iterable[Cue]) -> str:
    """The contents of a file; cues without text are left out, and one ends where the next begins, at the latest.

    A text that fills more than two lines is shown as several cues of about the same length, each for a time in
    proportion to its columns.
    """
    shown = [part for cue in sorted(cues, key=lambda cue: cue.start) for part in _parts(cue)]
    blocks = []
    for number, (cue, after) in enumerate(zip(shown, [*shown[1:], None]), 1):
        start, end = _milliseconds(cue.start), _milliseconds(cue.end)
        if after is not None:
            end = min(end, _milliseconds(after.start))
        blocks.append(f"{number}\n{time_stamp(start)} --> {time_stamp(max(start, end))}\n{cue.text}\n")
    return "\n".join(blocks)


def time_stamp(milliseconds: int) -> str:
    """HH:MM:SS,mmm."""
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d},{rest:03d}"


def lines(text: str, columns: int = LINE) -> list[str]:
    """A text on lines of so many columns: broken between words, and inside those that are longer than a line.

    Wide characters, as those of Chinese, take two columns, marks that stand above others none; beside a wide character
    a line may always be broken.
    """
    found, line = [], ""
    for word in _words(text):
        bare = word.lstrip()
        if line and width(line + word) > columns:
            found.append(line)
            line = bare
        else:
            line += word if line else bare
        while width(line) > columns:  # one word
            size = _fitting(line, columns)
            found.append(line[:size])
            line = line[size:]
    return [*found, line] if line else found


def width(text: str) -> int:
    """Columns that a text takes."""
    return sum(_columns(c) for c in text)


def _columns(c: str) -> int:
    if unicodedata.category(c) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(c) in "WF" else 1


def _words(text: str) -> list[str]:
    """What may begin a line: words with the space before them, and wide characters one by one."""
    words: list[str] = []
    for place, word in enumerate(text.split()):
        begun = " " if place else ""
        for c in word:
            wide = _columns(c) == 2
            if wide or not words or begun == " " or _columns(words[-1][-1]) == 2 and _columns(c):
                words.append(begun + c)
            else:
                words[-1] += c
            begun = ""
    return words


def _fitting(word: str, columns: int) -> int:
    """Characters of a word that fit on a line, one at least."""
    for size in range(2, len(word) + 1):
        if width(word[:size]) > columns:
            return size - 1
    return len(word)


def _even_lines(text: str) -> list[str]:
    """The lines of a text, as narrow as they can be without another cue, so that none is left with a word or two."""
    wide = lines(text)
    if len(wide) <= 1:
        return wide
    most = -(-len(wide) // LINES) * LINES
    longest = max(width(word.strip()) for word in _words(text))
    for columns in range(max(longest, width(text) // most), LINE):
        if len(narrow := lines(text, columns)) <= most:
            return narrow
    return wide


def _parts(cue: Cue) -> list[Cue]:
    all_lines = _even_lines(cue.text)
    texts = ["\n".join(all_lines[first : first + LINES]) for first in range(0, len(all_lines), LINES)]
    total, done, parts = sum(map(width, texts)), 0, []
    for text in texts:
        start = cue.start + (cue.end - cue.start) * done / max(total, 1)
        done += width(text)
        parts.append(Cue(start, cue.start + (cue.end - cue.start) * done / max(total, 1), text))
    return parts


def _milliseconds(seconds: float) -> int:
    return max(0, round(seconds * 1000))

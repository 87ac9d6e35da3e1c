"""Reads text files line by line."""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from moe_asr.errors import UserError

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)


def read_lines(path: str | Path) -> Iterator[str]:
    """The lines of a UTF-8 file, gzipped if its name ends in `.gz`, without their ends.

    They end at line feeds alone: a transcript may hold characters which str.splitlines would take for line ends. A byte
    order mark is no part of the first line.

    Raises:
        UserError: a line is not UTF-8, or a gzipped file is damaged.
    """
    try:
        with (gzip.open if str(path).endswith(".gz") else open)(path, "rb") as file:
            for number, line in enumerate(file, 1):
                text = line.decode("utf-8").rstrip("\r\n")
                yield text.removeprefix("\ufeff") if number == 1 else text
    except UnicodeDecodeError:
        raise UserError(f"{path}:{number}: not UTF-8; convert the file") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged or cut off: {error}") from None


def parse_number(text: str) -> float:
    """A decimal number as other programs write it: not nan or inf, no 1_000, no digits of another script.

    Raises:
        ValueError: it is none.
    """
    if not _NUMBER.fullmatch(text) or not math.isfinite(float(text)):
        raise ValueError(f"{text} is no number")
    return float(text)


def is_name(text: str) -> bool:
    """Whether a text can name an utterance in files of lines and words: something to print, without white space."""
    return text.isprintable() and len(text.split()) == 1 and text == text.strip()

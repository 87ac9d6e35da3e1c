"""Reads text files line by line."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from moe_asr.errors import UserError


def read_lines(path: str | Path) -> Iterator[str]:
    """The lines of a UTF-8 file, gzipped if its name ends in `.gz`, without their ends.

    They end at line feeds alone: a transcript may hold characters which str.splitlines would take for line ends.

    Raises:
        UserError: a line is not UTF-8, or a gzipped file is damaged.
    """
    try:
        with (gzip.open if str(path).endswith(".gz") else open)(path, "rb") as file:
            for number, line in enumerate(file, 1):
                yield line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise UserError(f"{path}:{number}: not UTF-8; convert the file") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged or cut off: {error}") from None

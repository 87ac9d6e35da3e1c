"""The table from which a corpus is prepared: tab-separated text with a header, one utterance a line.

Columns `id`, `audio` and `text` must be there; `speaker`, `accent`, `language`, `start` and `duration` may be. There is
no quoting, the encoding is UTF-8, and audio paths are absolute or relative to the table's folder.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

from moe_asr.errors import UserError
from moe_asr.files import atomic_write


@dataclass(frozen=True)
class Row:
    """One line of a table, as it stands there.

    Args:
        start: Seconds, as text; with it the row is a part of a longer recording.
        duration: Seconds, as text: of that part, or without `start` the duration which the file should have.
        line: Number in the table, from 1.
        problem: Why the line could not be read; empty if it could.
    """

    id: str
    audio: str
    text: str
    speaker: str = ""
    accent: str = ""
    language: str = ""
    start: str = ""
    duration: str = ""
    line: int = 0
    problem: str = ""


_REQUIRED = ("id", "audio", "text")
_COLUMNS = tuple(field.name for field in fields(Row) if field.name not in ("line", "problem"))


def read_table(path: str | Path) -> list[Row]:
    """Reads a table. Lines which are not UTF-8 or have a wrong number of fields are rows with a `problem`.

    Raises:
        UserError: there is no such file, or its header is not one.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no table at {path}: expected tab-separated text with the columns {', '.join(_COLUMNS)}")
    # split at line feeds alone: a transcript may hold characters which str.splitlines would take for line ends
    lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    header = lines[0].rstrip(b"\r").decode("utf-8", errors="replace").split("\t")
    missing = [name for name in _REQUIRED if name not in header]
    unknown = [name for name in header if name not in _COLUMNS]
    if missing or unknown or len(set(header)) < len(header):
        wrong = f"lacks {', '.join(missing)}" if missing else f"has unknown or repeated columns {', '.join(unknown)}"
        raise UserError(f"{path}: the header {wrong}; columns are {', '.join(_COLUMNS)}, separated by tabs")
    rows = []
    for number, line in enumerate(lines[1:], 2):
        if line.strip():
            rows.append(_row(line.rstrip(b"\r"), header, path.parent, number))
    return rows


def write_table(path: str | Path, rows: Iterable[Row]) -> None:
    """Writes a table that `read_table` reads, atomically; columns which are empty in all rows are left out.

    Raises:
        UserError: a value holds a tab or a line end.
    """
    rows = list(rows)
    columns = [name for name in _COLUMNS if name in _REQUIRED or any(getattr(row, name) for row in rows)]
    with atomic_write(path) as file:
        file.write("\t".join(columns) + "\n")
        for row in rows:
            values = [getattr(row, name) for name in columns]
            if any(c in value for value in values for c in "\t\n\r"):
                raise UserError(f"utterance {row.id}: a tab or line end inside {values}")
            file.write("\t".join(values) + "\n")


def _row(line: bytes, header: list[str], folder: Path, number: int) -> Row:
    problem = ""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        text = line.decode("utf-8", errors="replace")
        problem = f"not UTF-8: byte 0x{line[error.start]:02x} at position {error.start} of the line"
    values = text.split("\t")
    if len(values) != len(header):
        problem = problem or f"wrong number of fields: {len(values)}, but the header has {len(header)}"
        values = (values + [""] * len(header))[: len(header)]
    row = {name: value.strip() for name, value in zip(header, values)}
    row["audio"] = str((folder / row["audio"]).absolute()) if row["audio"] else ""
    return Row(**row, line=number, problem=problem)

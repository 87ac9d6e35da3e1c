"""Reads a release of Common Voice: `train.tsv`, `dev.tsv`, `test.tsv`, `validated.tsv` ..., and recordings in `clips/`.

The lists are tab-separated text with a header and without quoting. What speakers say about their accent is free text or
a code, and the column has had two names; a table from accents to groups makes domains of it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_asr.data.checks import Rejection
from moe_asr.data.lines import read_lines
from moe_asr.data.tables import Row
from moe_asr.errors import UserError

ADVICE = "get it from https://commonvoice.mozilla.org/datasets and give the folder of one language, which holds clips/"
_AUDIO = (".mp3", ".ogg", ".opus", ".wav", ".flac")
_EMPTY = dict.fromkeys(("client_id", "path", "sentence", "accent", "locale"), "")
_NAME_LENGTH = 12  # of the 128 hexadecimal digits of a client_id


@dataclass(frozen=True)
class Part:
    """One list of a release.

    Args:
        rows: What can be used.
        rejections: What cannot, by line.
    """

    rows: list[Row]
    rejections: list[Rejection]


def read_release(
    folder: str | Path, parts: Sequence[str], accents: Mapping[str, str] | None = None, language: str = ""
) -> dict[str, Part]:
    """Rows of the parts, in the order of their lists, each with the speaker's accent.

    A speaker's name is the first 12 digits of `client_id`, or as many more as it takes to tell the speakers of these
    parts apart. A clip may have another extension than the list says: copies of the corpus are often re-encoded.

    Args:
        folder: Of one language; it holds the lists and `clips/`.
        parts: Names of lists, such as train.
        accents: The domain of each accent; what is not in it is rejected. None takes accents as they stand.
        language: Where the lists have no column `locale`.

    Raises:
        UserError: a list or the folder of clips is missing, a list is no such list, or nothing of it can be used.
    """
    lists = {part: _read_list(Path(folder) / f"{part}.tsv") for part in parts}
    names = _speaker_names(values["client_id"] for lines in lists.values() for values in lines.values())
    clips = _find_clips(Path(folder) / "clips")
    release = {}
    for part, lines in lists.items():
        found = Part([], [])
        for number, values in lines.items():
            row = Row(
                id=Path(values["path"]).stem,
                audio=clips.get(values["path"]) or clips.get(Path(values["path"]).stem, ""),
                text=values["sentence"],
                speaker=names[values["client_id"]],
                accent=values["accent"] if accents is None else accents.get(values["accent"], ""),
                language=values["locale"] or language,
                line=number,
            )
            if rejection := _check(row, values, accents):
                found.rejections.append(rejection)
            else:
                found.rows.append(row)
        if not found.rows:
            why = tally(found.rejections) or "it is empty"
            raise UserError(f"{Path(folder) / part}.tsv: no line of it can be used: {why}")
        release[part] = found
    return release


def read_accent_groups(path: str | Path) -> dict[str, str]:
    """The domain of each accent, from tab-separated text with the columns `accent` and `group`, and perhaps others.

    Raises:
        UserError: no such file, no such columns, a line without an accent or group, or an accent in two groups.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no table of accents at {path}: expected tab-separated text with the columns accent and group")
    lines = read_lines(path)
    header = next(lines, "").split("\t")
    if not {"accent", "group"} <= set(header) or len(set(header)) < len(header):
        raise UserError(f"{path}: expected a header with the columns accent and group, not '{' '.join(header)}'")
    groups: dict[str, str] = {}
    for number, line in enumerate(lines, 2):
        if line.strip():
            values = dict(zip(header, map(str.strip, line.split("\t"))))
            accent, group = values.get("accent", ""), values.get("group", "")
            if not accent or not group or groups.setdefault(accent, group) != group:
                raise UserError(f"{path}:{number}: expected one group for each accent, not '{line}'")
    return groups


def tally(rejections: Iterable[Rejection]) -> str:
    """How many for which reason, the commonest first: `12 no accent, 1 missing clip`; unknown accents by name."""
    counts = Counter(f"{r.reason} {r.detail}" if r.reason == "unknown accent" else r.reason for r in rejections)
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common())


def _read_list(path: Path) -> dict[int, dict[str, str]]:
    """The fields of each line by its number, and what is wrong with them as `problem`; "" where there is none."""
    if not path.is_file():
        raise UserError(f"no {path}: {ADVICE}")
    lines = read_lines(path)
    header = next(lines, "").split("\t")
    header = ["accent" if name == "accents" else name for name in header]
    missing = [name for name in ("client_id", "path", "sentence") if name not in header]
    if missing or len(set(header)) < len(header):
        wrong = f"lacks {', '.join(missing)}" if missing else f"has {max(header, key=header.count)} twice"
        raise UserError(f"{path}: the header {wrong}; is it a list of Common Voice?")
    values = {}
    for number, line in enumerate(lines, 2):
        if line.strip():
            fields = [field.strip() for field in line.split("\t")]
            problem = f"{len(fields)}, but the header has {len(header)}" if len(fields) != len(header) else ""
            values[number] = _EMPTY | dict(zip(header, fields)) | {"problem": problem}
    return values


def _check(row: Row, values: Mapping[str, str], accents: Mapping[str, str] | None) -> Rejection | None:
    if values["problem"]:
        return Rejection(row, "wrong number of fields", values["problem"])
    if not row.text:
        return Rejection(row, "empty sentence")
    if accents is not None and not row.accent:
        accent = values["accent"]
        return Rejection(row, "unknown accent", f"'{accent}'") if accent else Rejection(row, "no accent")
    if not row.audio:
        return Rejection(row, "missing clip", values["path"])
    return None


def _find_clips(folder: Path) -> dict[str, str]:
    """Absolute paths of the recordings, by their names with and without extension."""
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: {ADVICE}")
    clips: dict[str, str] = {}
    for name in sorted(os.listdir(folder)):  # once, because releases hold millions
        stem, extension = os.path.splitext(name)
        if extension.lower() in _AUDIO:
            clips[name] = clips[stem] = str(folder.absolute() / name)
    return clips


def _speaker_names(client_ids: Iterable[str]) -> dict[str, str]:
    """The shortest beginnings of 12 characters or more in which all differ."""
    distinct = set(client_ids)
    length = _NAME_LENGTH
    while len({name[:length] for name in distinct}) < len(distinct):
        length += 1
    return {name: name[:length] for name in distinct}

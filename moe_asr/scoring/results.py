"""The rows of a results table: systems which decoded the same utterances, and their error rates on parts of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from moe_asr.errors import UserError
from moe_asr.scoring.hypotheses import SYSTEM, read_hypotheses, read_system
from moe_asr.scoring.report import Summary, summarise
from moe_asr.scoring.scored import Scored, group_by, score
from moe_asr.scoring.significance import Bootstrap, compare, match
from moe_asr.scoring.writing import MetricChoice

By = Literal["accent", "speaker"]
POOLED = "accents pooled"
ALL = "all"
_SAME_FACTS = ("model", "adapter", "trainable_parameters", "total_parameters")


@dataclass(frozen=True)
class Decode:
    """How one decode folder came about, from its `system.json`."""

    command: str
    git: str
    versions: dict[str, str]
    date: str
    seconds: float | None


@dataclass(frozen=True)
class Row:
    """One system.

    Args:
        name: as in the table
        decodes: how each of its decode folders came about
        scored: its utterances, of all folders
        parameters: how many were trained
        trainable: the same in per cent of those that full fine-tuning trains
        active_experts: mean over utterances; None for a system without experts
        megabytes: of its files on disk, with the adaptation to one domain; None where the decodes do not say
        adaptation_megabytes: of the adaptation alone; None where there is none
        milliseconds: to decode one utterance, batches and all; None where they do not say
    """

    name: str
    decodes: list[Decode]
    scored: list[Scored] = field(repr=False)
    parameters: int
    trainable: float
    active_experts: float | None
    megabytes: float | None
    milliseconds: float | None
    adaptation_megabytes: float | None = None


@dataclass(frozen=True)
class Results:
    """Numbers of a results table.

    Args:
        rows: the systems; the first is the one the others are compared with
        general: the accent that counts as the general domain; None if none does
        columns: names of the parts of the test set
        cells: by row and column
        p_values: of each row against the first, on `compared_on`; None for the first
        compared_on: the column that `p_values` are about
        by: what the test set is divided by
        speakers: by name, the summary of each row; empty if the test set is divided by something else
    """

    rows: list[Row]
    general: str | None
    columns: list[str]
    cells: list[list[Summary]]
    p_values: list[float | None]
    compared_on: str
    by: By = "accent"
    speakers: dict[str, list[Summary]] = field(default_factory=dict)


def read_row(system: str, metric: MetricChoice, normaliser: str) -> Row:
    """Reads and scores one system.

    Args:
        system: `name=decode_dir[,decode_dir...]`; several folders are several test sets of one system
        metric: wer, cer or mer, or auto: by the language of each utterance
        normaliser: name of the text normaliser

    Raises:
        UserError: not of that form, or a folder that is incomplete, or folders of different models.
    """
    name, _, folders = (part.strip() for part in system.partition("="))
    folders = [folder.strip() for folder in folders.split(",") if folder.strip()]
    if not name or not folders:
        raise UserError(f"a system is written name=decode_dir[,decode_dir...], not '{system}'")
    scored, facts, active, seconds = [], [read_system(folder) for folder in folders], [], []
    for folder, system_facts in zip(folders, facts):
        found = score(read_hypotheses(folder), metric, normaliser)
        active += [(_number(system_facts, "mean_active_experts", folder, optional=True), len(found))]
        seconds += [(_number(system_facts, "seconds_per_utterance", folder, optional=True), len(found))]
        scored += found
        for key in _SAME_FACTS:
            if system_facts.get(key) != facts[0].get(key):
                raise UserError(f"system '{name}': '{key}' differs between {folders[0]} and {folder}")
    if len({x.id for x in scored}) < len(scored):
        raise UserError(f"system '{name}': its decode folders have utterances in common")
    total, trained = (_number(facts[0], f"{what}_parameters", folders[0]) for what in ("total", "trainable"))
    sizes = [_number(facts[0], key, folders[0], optional=True) for key in ("model_bytes", "adaptation_bytes")]
    per_utterance = _mean(seconds)
    return Row(
        name=name,
        decodes=[_decode(folder, f) for folder, f in zip(folders, facts)],
        scored=scored,
        parameters=int(trained),
        trainable=100 * trained / max(total, 1),
        active_experts=_mean(active),
        megabytes=None if sizes[0] is None else (sizes[0] + (sizes[1] or 0)) / 1e6,
        milliseconds=None if per_utterance is None else 1000 * per_utterance,
        adaptation_megabytes=None if sizes[1] is None else sizes[1] / 1e6,
    )


def make_results(rows: Sequence[Row], general: str | None, bootstrap: Bootstrap, by: By = "accent") -> Results:
    """Error rates of every system on each accent, on all accents but the general one pooled, and on the general one; or
    on the whole and on each speaker.

    Args:
        rows: the systems, on the same utterances
        general: the accent that counts as the general domain; None if none does
        bootstrap: how to resample
        by: what divides the test set

    Raises:
        UserError: no system, a name that comes twice, different utterances, or no utterance of accent `general`.
    """
    if not rows:
        raise UserError("no systems given; write them as name=decode_dir")
    names = [row.name for row in rows]
    if len(set(names)) < len(names):
        raise UserError(f"system '{max(names, key=names.count)}' is given twice")
    matched = [match_rows(rows[0], row) for row in rows]
    columns = {ALL: lambda x: True} if by == "speaker" else _columns(rows[0], general)
    compared_on = POOLED if POOLED in columns else next(iter(columns))
    parts = {column: [[x for x in row if select(x)] for row in matched] for column, select in columns.items()}
    first, *others = parts[compared_on]
    return Results(
        rows=list(rows),
        general=general,
        columns=list(columns),
        cells=[[summarise(parts[column][k], bootstrap) for column in columns] for k in range(len(rows))],
        p_values=[None, *(compare(first, other, bootstrap).p_value for other in others)],
        compared_on=compared_on,
        by=by,
        speakers=_speakers(matched, bootstrap) if by == "speaker" else {},
    )


def _speakers(matched: Sequence[Sequence[Scored]], bootstrap: Bootstrap) -> dict[str, list[Summary]]:
    """The summary of every row on each speaker."""
    groups = [group_by(row, "speaker") for row in matched]
    if not groups[0]:
        raise UserError("no utterance has a speaker: add the column 'speaker' to the table, prepare and decode again")
    alone = Bootstrap(bootstrap.replications, "utterance", bootstrap.seed)  # one speaker is one unit of speakers
    return {name: [summarise(group[name], alone) for group in groups] for name in groups[0]}


def _columns(row: Row, general: str | None) -> dict[str, Callable[[Scored], bool]]:
    """Column names, and which utterances each holds."""
    accents = list(group_by(row.scored, "accent"))
    if general is not None and general not in accents:
        raise UserError(f"no utterance has the accent '{general}'; there are: {', '.join(accents) or 'none at all'}")
    targets = [accent for accent in accents if accent != general]

    def is_one_of(*wanted: str) -> Callable[[Scored], bool]:
        return lambda x: x.value("accent") in wanted

    columns = {accent: is_one_of(accent) for accent in targets}
    if len(targets) > 1:
        columns[POOLED] = is_one_of(*targets)
    if general is not None:
        columns[general] = is_one_of(general)
    return columns or {ALL: lambda x: True}


def match_rows(first: Row, row: Row) -> list[Scored]:
    """The utterances of `row` in the order of those of `first`.

    Raises:
        UserError: they are not the same utterances.
    """
    try:
        return match(first.scored, row.scored)
    except UserError as error:
        raise UserError(f"'{row.name}' cannot stand beside '{first.name}': {error}") from None


def _decode(folder: str, facts: dict) -> Decode:
    # an old system.json without a date was written when its file was
    written = datetime.fromtimestamp(Path(folder, SYSTEM).stat().st_mtime, timezone.utc)
    return Decode(
        command=str(facts.get("command", "unknown")),
        git=str(facts.get("git", "unknown")),
        versions=dict(facts.get("versions") or {}),
        date=str(facts.get("date") or written.isoformat(timespec="seconds")),
        seconds=_number(facts, "seconds", folder, optional=True),
    )


def _number(facts: dict, key: str, folder: str, optional: bool = False) -> float | None:
    value = facts.get(key)
    if value is None and optional:
        return None
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise UserError(f"{Path(folder, SYSTEM)}: '{key}' is {value!r}, not a number; decode again")
    return value


def _mean(values: Sequence[tuple[float | None, int]]) -> float | None:
    known = [(value, weight) for value, weight in values if value is not None]
    return sum(value * weight for value, weight in known) / sum(weight for _, weight in known) if known else None

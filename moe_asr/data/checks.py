"""Checks of a corpus before anything is trained on it: what is wrong is listed with the reason, the rest is used."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from moe_asr.data.lines import is_name, parse_number
from moe_asr.data.manifests import Utterance
from moe_asr.data.probe import AudioFacts, probe
from moe_asr.data.tables import Row
from moe_asr.data.text import normalise
from moe_asr.errors import UserError
from moe_asr.files import atomic_write


@dataclass(frozen=True)
class CheckConfig:
    """What is accepted.

    Args:
        min_duration: In seconds; shorter utterances are rejected.
        max_duration: In seconds; longer ones are rejected.
        duration_tolerance: How far, in seconds, a declared duration may be from the file's.
        max_rejected: Fraction of rejected utterances above which preparation fails.
        num_jobs: Files read at the same time.
    """

    min_duration: float = 0.1
    max_duration: float = 30.0
    duration_tolerance: float = 0.05
    max_rejected: float = 0.05
    num_jobs: int = 2


@dataclass(frozen=True)
class Rejection:
    """Why a row is not used: `reason` is one of a few kinds, `detail` says the rest."""

    row: Row
    reason: str
    detail: str = ""


def check(rows: Sequence[Row], normaliser: str, config: CheckConfig) -> tuple[list[Utterance], list[Rejection]]:
    """Sorts rows into utterances with normalised text, and rejections; both in the order of the table.

    All audio is read to its end, because headers promise more than truncated files hold.
    """
    normalise(normaliser, "")  # an unknown name is found before hours of reading
    texts = {row.line: normalise(normaliser, row.text) for row in rows}
    rejections: dict[int, Rejection] = {}
    seen: dict[str, int] = {}
    for row in rows:
        if found := _check_row(row, texts[row.line], seen):
            rejections[row.line] = found
    audible = sorted({row.audio for row in rows if row.line not in rejections})
    with ThreadPoolExecutor(max(1, config.num_jobs)) as pool:  # libsndfile works outside Python's lock
        facts = dict(zip(audible, pool.map(probe, audible)))
    utterances = []
    for row in rows:
        if row.line in rejections:
            continue
        outcome = _place(row, texts[row.line], facts[row.audio], config)
        if isinstance(outcome, Rejection):
            rejections[row.line] = outcome
        else:
            utterances.append(outcome)
    return utterances, [rejections[line] for line in sorted(rejections)]


def write_rejections(path: str | Path, rejections: Sequence[Rejection]) -> None:
    """Writes JSON lines: line, id, audio, text, reason, detail."""
    with atomic_write(path) as file:
        for r in rejections:
            entry = {"line": r.row.line, "id": r.row.id, "audio": r.row.audio, "text": r.row.text}
            file.write(json.dumps(entry | {"reason": r.reason, "detail": r.detail}, ensure_ascii=False) + "\n")


def require_few(table: str, num_rows: int, rejections: Sequence[Rejection], limit: float, listed_in: str) -> None:
    """Stops if too much was rejected.

    Raises:
        UserError: more than the fraction `limit` of the rows, or all of them; names the commonest reasons.
    """
    if not num_rows:
        raise UserError(f"{table} has no utterances")
    if len(rejections) <= limit * num_rows and len(rejections) < num_rows:
        return
    counts = Counter(r.reason for r in rejections).most_common(3)
    raise UserError(
        f"{table}: {len(rejections)} of {num_rows} utterances rejected ({len(rejections) / num_rows:.1%}, limit"
        f" {limit:.1%}): {', '.join(f'{count} {reason}' for reason, count in counts)}; all are listed in {listed_in}"
    )


def _check_row(row: Row, text: str, seen: dict[str, int]) -> Rejection | None:
    """What can be told without the audio. `seen` maps ids to their lines."""
    if row.problem:
        reason, _, detail = row.problem.partition(": ")
        return Rejection(row, reason, detail)
    if not is_name(row.id):
        return Rejection(row, "bad id", f"{row.id!r} is empty or holds white space or signs that cannot be printed")
    if row.id in seen:
        return Rejection(row, "duplicate id", f"first in line {seen[row.id]}")
    seen[row.id] = row.line
    if not row.text:
        return Rejection(row, "empty text")
    if "\ufffd" in row.text:
        return Rejection(row, "not UTF-8", "U+FFFD in the text: it was decoded wrongly before it came here")
    if not text:
        return Rejection(row, "empty text after normalisation", row.text)
    if not row.audio:
        return Rejection(row, "no audio path")
    return None


def _place(row: Row, text: str, facts: AudioFacts, config: CheckConfig) -> Utterance | Rejection:
    """Fits a row to its file."""
    if facts.problem:
        return Rejection(row, facts.problem, facts.detail)
    whole = facts.num_samples / facts.sample_rate
    try:
        start = parse_number(row.start or "0")
        duration = parse_number(row.duration) if row.duration else whole - start
    except ValueError:
        return Rejection(row, "bad start or duration", f"'{row.start}', '{row.duration}' are not numbers of seconds")
    end = start + duration
    if not row.start and abs(duration - whole) > config.duration_tolerance:
        return Rejection(row, "wrong duration", f"declared {duration:g} s, the file has {whole:.3f} s")
    if not (start >= 0 and end <= whole + config.duration_tolerance):
        return Rejection(row, "wrong duration", f"{start:g} to {end:g} s is not within the file's {whole:.3f} s")
    duration = min(duration, whole - start) if row.start else whole
    if not duration >= config.min_duration:
        return Rejection(row, "too short", f"{duration:.3f} s, at least {config.min_duration:g} s are needed")
    if duration > config.max_duration:
        return Rejection(row, "too long", f"{duration:.3f} s, at most {config.max_duration:g} s are taken")
    return Utterance(
        id=row.id,
        audio=row.audio,
        num_samples=facts.num_samples,
        sample_rate=facts.sample_rate,
        text=text,
        speaker=row.speaker,
        accent=row.accent,
        language=row.language,
        start=start,
        duration=duration if row.start else None,
        raw_text=row.text if row.text != text else "",
        audio_crc32=facts.crc32,
    )

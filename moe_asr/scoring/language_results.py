"""Results by language: systems that were told the language of each utterance, and the same where they were not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moe_asr.errors import UserError
from moe_asr.scoring.align import align, count, tokenise
from moe_asr.scoring.classification import Classification
from moe_asr.scoring.identification import identification
from moe_asr.scoring.report import Summary, summarise
from moe_asr.scoring.results import Row, match_rows, read_row
from moe_asr.scoring.scored import UNKNOWN, Scored, by_unit, group_by, pool
from moe_asr.scoring.significance import Bootstrap, Comparison, compare_means, mean_interval
from moe_asr.scoring.writing import MetricChoice

TOLD, DETECTED = "language-aware", "language-agnostic"


@dataclass(frozen=True)
class LanguageRow:
    """One system under one condition.

    Args:
        name: of the system
        condition: TOLD or DETECTED
        row: sizes and speed
        languages: by language, in its unit
        pooled: by unit, all utterances that are counted in it
        mean: of the rates of languages, each weighing the same
        mean_interval: its 95 % interval
        characters: mean of the character error rates of languages
        characters_interval: its 95 % interval
        identified: how well languages were told; None where none was detected
        against: comparison of the means with the reference system under the same condition; None for itself
        characters_against: the same of the means of the character error rates
    """

    name: str
    condition: str
    row: Row
    languages: dict[str, Summary]
    pooled: dict[str, Summary]
    mean: float | None
    mean_interval: tuple[float, float] | None
    characters: float | None
    characters_interval: tuple[float, float] | None
    identified: Classification | None
    against: Comparison | None
    characters_against: Comparison | None


@dataclass(frozen=True)
class LanguageResults:
    """Numbers of a results table by language.

    Args:
        rows: systems under one or both conditions, in the order in which they were given
        reference: name of the system that the others are compared with
        metric: wer, cer, mer or auto
    """

    rows: list[LanguageRow]
    reference: str
    metric: MetricChoice

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(row.name for row in self.rows))

    def find(self, name: str, condition: str) -> LanguageRow | None:
        """The row of a system under a condition, if it was decoded so."""
        return next((row for row in self.rows if (row.name, row.condition) == (name, condition)), None)


def make_language_results(
    told: Sequence[str],
    detected: Sequence[str],
    metric: MetricChoice,
    normaliser: str,
    bootstrap: Bootstrap,
    against: str | None = None,
) -> LanguageResults:
    """Reads, scores and compares.

    Args:
        told: systems as name=decode_dir[,decode_dir...] that knew the language of each utterance
        detected: the same or others, that did not
        metric: what to count
        normaliser: name of the text normaliser
        bootstrap: how to resample
        against: name of the reference system; the first by default

    Raises:
        UserError: see `read_row`; a system twice, other utterances, utterances without language, no such reference
    """
    given = [(TOLD, one) for one in told] + [(DETECTED, one) for one in detected]
    read = [(condition, read_row(one, metric, normaliser)) for condition, one in given]
    if not read:
        raise UserError("no systems given; write them as name=decode_dir")
    names = [(condition, row.name) for condition, row in read]
    for condition, name in names:
        if names.count((condition, name)) > 1:
            raise UserError(f"system '{name}' is given twice as {condition}")
    first = read[0][1]
    reference = against or first.name
    if reference not in [name for _, name in names]:
        raise UserError(f"against: there is no system '{reference}' among {', '.join(sorted({n for _, n in names}))}")
    groups = {}
    for condition, row in read:
        found = group_by(match_rows(first, row), "language")
        if not found or UNKNOWN in found:
            raise UserError(
                f"'{row.name}' has utterances without a language: prepare the data with it, and decode again"
            )
        groups[condition, row.name] = found
    rows = []
    for condition, row in read:
        other = {} if row.name == reference else groups.get((condition, reference), {})
        rows.append(_language_row(row, condition, groups[condition, row.name], other, bootstrap))
    return LanguageResults(rows, reference, metric)


def _language_row(
    row: Row,
    condition: str,
    groups: dict[str, list[Scored]],
    reference: dict[str, list[Scored]],
    bootstrap: Bootstrap,
) -> LanguageRow:
    members = list(groups.values())
    hypotheses = [x.hypothesis for x in row.scored]
    characters, other = _by_character(groups), _by_character(reference)
    return LanguageRow(
        name=row.name,
        condition=condition,
        row=row,
        languages={name: summarise(one, bootstrap) for name, one in groups.items()},
        pooled={unit: summarise(one, bootstrap) for unit, one in by_unit(row.scored).items()},
        mean=_mean(members),
        mean_interval=mean_interval(members, bootstrap),
        characters=_mean(characters),
        characters_interval=mean_interval(characters, bootstrap),
        identified=identification(hypotheses, bootstrap.replications),
        against=compare_means(list(reference.values()), members, bootstrap) if reference else None,
        characters_against=compare_means(other, characters, bootstrap) if reference else None,
    )


def relative(found: Comparison | None) -> float | None:
    """By how much the second of two systems is above the first, relative to it."""
    return None if found is None or found.first == 0 else found.difference / found.first


def _by_character(groups: dict[str, list[Scored]]) -> list[list[Scored]]:
    return [in_characters(members) for members in groups.values()]


def in_characters(scored: Sequence[Scored]) -> list[Scored]:
    """The same normalised texts, counted in characters."""
    found = []
    for one in scored:
        ref, hyp = (tokenise(" ".join(tokens), "cer") for tokens in (one.ref, one.hyp))
        pairs = align(ref, hyp)
        found.append(Scored(one.hypothesis, ref, hyp, pairs, count(pairs), "cer"))
    return found


def _mean(groups: Sequence[Sequence[Scored]]) -> float | None:
    rates = [rate for scored in groups if (rate := pool(scored).rate) is not None]
    return sum(rates) / len(rates) if rates else None

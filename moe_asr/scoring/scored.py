"""Utterances with their error counts, and how to group them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from moe_asr.data.text import normalise
from moe_asr.scoring.align import Counts, Metric, Pair, align, count, tokenise
from moe_asr.scoring.hypotheses import Hypothesis
from moe_asr.scoring.writing import MetricChoice, metric_of, normaliser_of

Attribute = Literal["accent", "language", "speaker"]
UNKNOWN = "(unknown)"


@dataclass(frozen=True)
class Scored:
    """One utterance as tokens, aligned and counted.

    Args:
        hypothesis: what was decoded, raw
        ref: reference tokens after normalisation
        hyp: hypothesis tokens after normalisation
        pairs: their alignment
        counts: its errors
        metric: what its tokens are
    """

    hypothesis: Hypothesis
    ref: list[str] = field(repr=False)
    hyp: list[str] = field(repr=False)
    pairs: list[Pair] = field(repr=False)
    counts: Counts
    metric: Metric = "wer"

    @property
    def id(self) -> str:
        return self.hypothesis.id

    def value(self, attribute: Attribute) -> str:
        """Its accent, language or speaker, "(unknown)" where it has none."""
        return getattr(self.hypothesis, attribute) or UNKNOWN


def score(hypotheses: Iterable[Hypothesis], metric: MetricChoice, normaliser: str = "none") -> list[Scored]:
    """Normalises both sides in the same way, splits them into tokens, aligns and counts.

    Raises:
        UserError: no such normaliser; metric `auto`, and an utterance without a language
    """
    scored = []
    for hypothesis in hypotheses:
        unit = metric_of(metric, hypothesis.language, hypothesis.id)
        kind = normaliser_of(normaliser, metric, hypothesis.language)
        ref = tokenise(normalise(kind, hypothesis.ref), unit)
        hyp = tokenise(normalise(kind, hypothesis.hyp), unit)
        pairs = align(ref, hyp)
        scored.append(Scored(hypothesis, ref, hyp, pairs, count(pairs), unit))
    return scored


def pool(scored: Iterable[Scored]) -> Counts:
    """Counts added up, so that every reference token weighs the same."""
    return sum((one.counts for one in scored), Counts())


def group_by(scored: Sequence[Scored], attribute: Attribute) -> dict[str, list[Scored]]:
    """Utterances by accent, language or speaker, groups sorted by name; empty if none has that attribute."""
    groups: dict[str, list[Scored]] = {}
    for one in scored:
        groups.setdefault(one.value(attribute), []).append(one)
    return {} if set(groups) <= {UNKNOWN} else dict(sorted(groups.items()))


def by_unit(scored: Iterable[Scored]) -> dict[Metric, list[Scored]]:
    """Utterances by what their errors are counted in, units sorted."""
    units: dict[Metric, list[Scored]] = {}
    for one in scored:
        units.setdefault(one.metric, []).append(one)
    return dict(sorted(units.items()))

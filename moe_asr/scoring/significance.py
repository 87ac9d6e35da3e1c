"""Confidence intervals of an error rate, and whether one system is better than another.

Utterances are drawn with replacement (bootstrap; Bisani and Ney, ICASSP 2004). Utterances of one speaker resemble each
other, so drawing whole speakers gives the wider and more honest interval where there are speakers enough.
The interval is that of the percentiles 2.5 and 97.5: unlike mean +- 1.96 standard deviations it never leaves the range
of possible rates. Everything works on error counts, so no utterance is aligned a second time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from moe_asr.errors import UserError
from moe_asr.scoring.scored import Scored, pool

Unit = Literal["utterance", "speaker"]
_CHUNK = 1_000_000  # numbers drawn at a time, which bounds the memory


@dataclass(frozen=True)
class Bootstrap:
    """How to resample.

    Args:
        replications: how often a set of the same size is drawn
        unit: what is drawn, utterances or all utterances of a speaker at once
        seed: of the random numbers; the same seed gives the same interval
    """

    replications: int = 1000
    unit: Unit = "utterance"
    seed: int = 0

    def __post_init__(self):
        if self.replications < 1:
            raise UserError(f"bootstrap must be at least 1 replication, not {self.replications}; 1000 is usual")
        if self.seed < 0:
            raise UserError(f"seed must be 0 or more, not {self.seed}")


@dataclass(frozen=True)
class Comparison:
    """A second system against a first one, on the same utterances.

    Args:
        first: error rate of the first system
        second: error rate of the second system
        difference: second - first, below 0 where the second is better
        interval: 95 % interval of the difference; None with fewer than two units
        p_improvement: share of bootstrap replications in which the second is better, ties counted half
        p_value: two-sided, of the hypothesis that it makes no difference which system recognised a unit
        units: how many utterances or speakers were resampled
    """

    first: float
    second: float
    difference: float
    interval: tuple[float, float] | None
    p_improvement: float
    p_value: float
    units: int


def interval(scored: Sequence[Scored], bootstrap: Bootstrap) -> tuple[float, float] | None:
    """95 % confidence interval of the pooled error rate, as fractions; None with fewer than two units to draw from."""
    names = _units(scored, bootstrap.unit)
    errors_B = _add_up([x.counts.errors for x in scored], names)
    n_B = _add_up([x.counts.n for x in scored], names)
    return _percentiles(*_resample(np.stack([errors_B, n_B]), bootstrap)) if len(n_B) > 1 else None


def compare(first: Sequence[Scored], second: Sequence[Scored], bootstrap: Bootstrap) -> Comparison:
    """Paired comparison of two systems on the same utterances.

    The p-value is that of an approximate randomisation test (Noreen 1989): under the null hypothesis the two systems'
    results on a unit could as well be swapped, so

        p = (1 + number of random swaps with |difference| >= |observed difference|) / (1 + replications).

    Raises:
        UserError: ids or references differ, or there is no reference token at all.
    """
    second = match(first, second)
    n, errors_first, errors_second = pool(first).n, pool(first).errors, pool(second).errors
    if n == 0:
        raise UserError("all references are empty, so there is nothing to compare two systems by")
    names = _units(first, bootstrap.unit)
    n_B = _add_up([x.counts.n for x in first], names)
    gain_B = _add_up([b.counts.errors - a.counts.errors for a, b in zip(first, second)], names)
    drawn_gain_R, drawn_n_R = _resample(np.stack([gain_B, n_B]), bootstrap)
    return Comparison(
        first=errors_first / n,
        second=errors_second / n,
        difference=(errors_second - errors_first) / n,
        interval=_percentiles(drawn_gain_R, drawn_n_R) if len(n_B) > 1 else None,
        p_improvement=float(np.mean((drawn_gain_R < 0) + 0.5 * (drawn_gain_R == 0))),
        p_value=_randomisation(gain_B, bootstrap),
        units=len(n_B),
    )


def mean_interval(groups: Sequence[Sequence[Scored]], bootstrap: Bootstrap) -> tuple[float, float] | None:
    """95 % confidence interval of the mean of the groups' rates, every group weighing the same.

    Units are drawn within each group, because which groups there are was no chance. None where no group has two units.
    """
    rates, several = [], False
    for scored in (scored for scored in groups if pool(scored).n):
        sums_KB = _sums(scored, [[x.counts.errors for x in scored], [x.counts.n for x in scored]], bootstrap)
        several |= sums_KB.shape[1] > 1
        rates.append(_group_rates(sums_KB, bootstrap, len(rates)))
    return _percentiles(np.mean(rates, 0), np.ones(bootstrap.replications)) if several else None


def compare_means(
    first: Sequence[Sequence[Scored]], second: Sequence[Sequence[Scored]], bootstrap: Bootstrap
) -> Comparison:
    """As `compare`, of the means over groups: an error in a group of n reference tokens, one of G, counts 1 / (G n).

    Args:
        first: utterances of each group, such as a language
        second: those of the other system, groups in the same order

    Raises:
        UserError: ids or references differ, or there is no reference token at all.
    """
    pairs = [(one, match(one, other)) for one, other in zip(first, second, strict=True) if pool(one).n]
    if not pairs:
        raise UserError("all references are empty, so there is nothing to compare two systems by")
    differences, gains = [], []
    for one, other in pairs:
        gain = [b.counts.errors - a.counts.errors for a, b in zip(one, other)]
        sums_KB = _sums(one, [gain, [x.counts.n for x in one]], bootstrap)
        differences.append(_group_rates(sums_KB, bootstrap, len(gains)))
        gains.append(sums_KB[0] / (len(pairs) * sums_KB[1].sum()))
    drawn_R = np.mean(differences, 0)
    means = [float(np.mean([pool(scored).rate for scored in system])) for system in zip(*pairs)]
    gain_B = np.concatenate(gains)
    several = any(len(gain) > 1 for gain in gains)
    return Comparison(
        first=means[0],
        second=means[1],
        difference=means[1] - means[0],
        interval=_percentiles(drawn_R, np.ones(bootstrap.replications)) if several else None,
        p_improvement=float(np.mean((drawn_R < 0) + 0.5 * (drawn_R == 0))),
        p_value=_randomisation(gain_B, bootstrap),
        units=len(gain_B),
    )


def match(first: Sequence[Scored], second: Sequence[Scored]) -> list[Scored]:
    """`second` in the order of `first`.

    Raises:
        UserError: ids or references differ.
    """
    by_id = {x.id: x for x in second}
    lonely = sorted({x.id for x in first} ^ set(by_id))
    if lonely:
        raise UserError(
            f"the two systems were decoded on different utterances: '{lonely[0]}' is in one alone, "
            f"as are {len(lonely) - 1} others; decode the same manifest with both"
        )
    for x in first:
        if x.ref != by_id[x.id].ref:
            raise UserError(
                f"the two systems have different references for '{x.id}'; decode the same manifest with both"
            )
    return [by_id[x.id] for x in first]


def _units(scored: Sequence[Scored], unit: Unit) -> list[str]:
    if unit == "utterance":
        return [x.id for x in scored]
    for x in scored:
        if not x.hypothesis.speaker:
            raise UserError(
                f"unit 'speaker' needs speaker names, and utterance '{x.id}' has none; use unit 'utterance'"
            )
    return [x.hypothesis.speaker for x in scored]


def _add_up(values: Sequence[int], names: Sequence[str]) -> np.ndarray:
    """Sums of `values` with the same name, in the order in which names first appear."""
    index = {name: i for i, name in enumerate(dict.fromkeys(names))}
    sums_B = np.zeros(len(index), np.int64)
    np.add.at(sums_B, [index[name] for name in names], values)
    return sums_B


def _sums(scored: Sequence[Scored], values: Sequence[Sequence[int]], bootstrap: Bootstrap) -> np.ndarray:
    """(K, B): K kinds of values, summed over each of B units."""
    names = _units(scored, bootstrap.unit)
    return np.stack([_add_up(one, names) for one in values])


def _group_rates(sums_KB: np.ndarray, bootstrap: Bootstrap, number: int) -> np.ndarray:
    """(R,) rates of one group in R drawn sets, each group with numbers of its own; its rate where nothing was said."""
    own = Bootstrap(bootstrap.replications, bootstrap.unit, bootstrap.seed + number)
    errors_R, n_R = _resample(sums_KB, own)
    errors, n = sums_KB.sum(1)
    return np.where(n_R > 0, errors_R / np.maximum(n_R, 1), errors / n)


def _resample(values_KB: np.ndarray, bootstrap: Bootstrap) -> np.ndarray:
    """(K, R): each of K rows summed over B units drawn with replacement, the same units for every row."""
    units = values_KB.shape[1]
    generator = np.random.default_rng(bootstrap.seed)
    sums = []
    for rows in _chunks(bootstrap.replications, units):
        drawn_RB = generator.integers(0, units, size=(rows, units))
        sums.append(values_KB[:, drawn_RB].sum(axis=2))
    return np.concatenate(sums, axis=1)


def _randomisation(gain_B: np.ndarray, bootstrap: Bootstrap) -> float:
    gain_B = gain_B[gain_B != 0]
    generator = np.random.default_rng(bootstrap.seed)
    as_extreme = 0
    for rows in _chunks(bootstrap.replications, max(len(gain_B), 1)):
        signs_RB = generator.integers(0, 2, size=(rows, len(gain_B)), dtype=np.int8) * 2 - 1
        # sums of fractions in another order differ in their last digits
        as_extreme += int((np.abs(signs_RB @ gain_B) >= abs(gain_B.sum()) * (1 - 1e-9)).sum())
    return (1 + as_extreme) / (1 + bootstrap.replications)


def _chunks(replications: int, units: int) -> list[int]:
    """Splits `replications` so that each part draws about `_CHUNK` numbers."""
    rows = max(1, _CHUNK // units)
    return [min(rows, replications - start) for start in range(0, replications, rows)]


def _percentiles(errors_R: np.ndarray, n_R: np.ndarray) -> tuple[float, float] | None:
    """Percentiles 2.5 and 97.5 of the rates; replications without a reference token have none, and are left out."""
    rates_R = errors_R[n_R > 0] / n_R[n_R > 0]
    if len(rates_R) == 0:
        return None
    low, high = np.percentile(rates_R, [2.5, 97.5])
    return float(low), float(high)

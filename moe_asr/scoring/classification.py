"""How well utterances are told apart: accuracy of each class, with intervals, and who is taken for whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moe_asr.scoring.align import Counts
from moe_asr.scoring.hypotheses import Hypothesis
from moe_asr.scoring.scored import Scored
from moe_asr.scoring.significance import Bootstrap, interval
from moe_asr.scoring.tables import markdown_table, percent, percent_interval


@dataclass(frozen=True)
class Classified:
    """One utterance.

    Args:
        id: unique name
        label: its class
        guess: the class that it was taken for
        speaker: who said it; "" where not known
    """

    id: str
    label: str
    guess: str
    speaker: str = ""


@dataclass(frozen=True)
class Accuracy:
    """Of a set of utterances.

    Args:
        utterances: how many
        right: how many of them were taken for what they are
        interval: 95 % interval of their share; None where there is too little to resample
    """

    utterances: int
    right: int
    interval: tuple[float, float] | None

    @property
    def rate(self) -> float | None:
        return self.right / self.utterances if self.utterances else None


@dataclass(frozen=True)
class Classification:
    """A classifier on a set of utterances.

    Args:
        classes: their names
        unit: what was resampled for the intervals: speakers where all are known and there are two at least
        overall: all utterances
        each: those of each class
        confusion: for each class how many of its utterances were taken for which class
    """

    classes: tuple[str, ...]
    unit: str
    overall: Accuracy
    each: dict[str, Accuracy]
    confusion: list[list[int]]

    @property
    def mean(self) -> float:
        """Mean over the classes that occur, each weighing the same."""
        return float(np.mean([one.rate for one in self.each.values() if one.rate is not None]))

    @property
    def majority(self) -> float:
        """Accuracy of always guessing the most frequent class."""
        return max(one.utterances for one in self.each.values()) / self.overall.utterances

    def table(self) -> str:
        """A line for each class: accuracy, and what its utterances were taken for, in numbers of utterances."""
        header = ["class", "utterances", "accuracy %", "95 % interval", *(f"-> {name}" for name in self.classes)]
        rows = [[name, *_cells(one), *map(str, row)] for (name, one), row in zip(self.each.items(), self.confusion)]
        taken = np.sum(self.confusion, axis=0).tolist()
        return markdown_table(header, [*rows, ["all", *_cells(self.overall), *map(str, taken)]])


def classification(
    utterances: Sequence[Classified], classes: Sequence[str], replications: int = 1000
) -> Classification:
    """Counts, and resamples for intervals. There are utterances, their labels and guesses among the classes."""
    assert utterances, "nothing was classified"
    speakers = {one.speaker for one in utterances}
    unit = "speaker" if "" not in speakers and len(speakers) > 1 else "utterance"
    bootstrap = Bootstrap(replications, unit)
    number = {name: k for k, name in enumerate(classes)}
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    for one in utterances:
        confusion[number[one.label], number[one.guess]] += 1
    return Classification(
        classes=tuple(classes),
        unit=unit,
        overall=_accuracy(utterances, bootstrap),
        each={name: _accuracy([one for one in utterances if one.label == name], bootstrap) for name in classes},
        confusion=confusion.tolist(),
    )


def _accuracy(utterances: Sequence[Classified], bootstrap: Bootstrap) -> Accuracy:
    """A wrong guess is one error in one token, so that the interval is that of an error rate, mirrored."""
    scored = [
        Scored(
            Hypothesis(one.id, one.label, one.guess, one.speaker),
            [one.label],
            [one.guess],
            [(one.label, one.guess)],
            Counts(n=1, s=int(one.label != one.guess)),
        )
        for one in utterances
    ]
    errors = interval(scored, bootstrap) if scored else None
    right = sum(one.label == one.guess for one in utterances)
    return Accuracy(len(utterances), right, errors and (1 - errors[1], 1 - errors[0]))


def _cells(one: Accuracy) -> list[str]:
    return [str(one.utterances), percent(one.rate), percent_interval(one.interval)]

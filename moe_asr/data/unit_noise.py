"""Noise on sequences of units, which stands for what an acoustic encoder makes of them.

All sequences of a corpus are one flat array with offsets, so that an epoch of noise takes some array operations.

Shape letters: I units of all sequences before, O after; N sequences; K kinds of units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moe_asr.errors import UserError
from moe_asr.strict_json import parse_json


@dataclass(frozen=True)
class NoiseConfig:
    """What happens to each unit of a source, independently of the others.

    Args:
        substitute: Probability that it becomes another unit.
        drop: Probability that it vanishes.
        repeat: What is left of it stands there 1 to so many times, each number equally probable.
        blank: Probability that the blank unit [-] follows it,
        blanks: then 1 to so many times, each number equally probable.
        confusions: JSON file of weights, {"[zh]": {"[z]": 3, "[ch]": 1}, ...}, of what a unit becomes that is
            substituted; a unit that is not in it, or all without a file, becomes any other with equal probability.
    """

    substitute: float = 0.0
    drop: float = 0.0
    repeat: int = 1
    blank: float = 0.0
    blanks: int = 1
    confusions: str = ""

    def __post_init__(self):
        if min(self.substitute, self.drop, self.blank) < 0 or self.substitute + self.drop > 1 or self.blank > 1:
            raise UserError("noise: substitute, drop and blank are probabilities, substitute + drop at most 1")
        for name in ("repeat", "blanks"):
            if getattr(self, name) < 1:
                raise UserError(f"noise.{name} is {getattr(self, name)}; it must be at least 1")

    @property
    def longest(self) -> int:
        """The most units that one can become."""
        return self.repeat + self.blanks * (self.blank > 0)


class UnitNoise:
    """Applies the noise of a configuration.

    Args:
        config: What to do.
        units: Names of the kinds of units, which are given by their index here; the first is the blank. A unit with an
            index beyond these is never substituted.

    Raises:
        UserError: there is no such table of confusions, or it is none of these units.
    """

    def __init__(self, config: NoiseConfig, units: Sequence[str]):
        self.config = config
        weights_KK = 1.0 - np.eye(len(units))
        weights_KK[:, 0] = 0.0  # nothing becomes the blank
        if config.confusions:
            _fill(weights_KK, _read_confusions(config.confusions), list(units), config.confusions)
        # a unit without any other stays what it is
        weights_KK[np.diag_indices(len(units))] = weights_KK.sum(1) == 0
        self._cumulative_KK = np.cumsum(weights_KK / weights_KK.sum(1, keepdims=True), axis=1)

    def __call__(
        self, units_I: np.ndarray, offsets: np.ndarray, random: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Noisy units_O, their offsets, and for each unit of before where it begins in units_O, -1 if it vanished.

        Args:
            offsets: (N + 1); sequence n is units_I[offsets[n] : offsets[n + 1]]
        """
        config = self.config
        fate_I, units_I = random.random(len(units_I)), units_I.copy()
        changed = np.flatnonzero((fate_I < config.substitute) & (units_I < len(self._cumulative_KK)))
        drawn = random.random(len(changed))
        for kind in np.unique(units_I[changed]):
            here = units_I[changed] == kind
            row_K = self._cumulative_KK[kind]
            units_I[changed[here]] = np.minimum(np.searchsorted(row_K, drawn[here], "right"), len(row_K) - 1)
        counts_I = random.integers(1, config.repeat, len(units_I), endpoint=True)
        counts_I[(fate_I >= config.substitute) & (fate_I < config.substitute + config.drop)] = 0
        blanks_I = random.integers(1, config.blanks, len(units_I), endpoint=True)
        blanks_I[random.random(len(units_I)) >= config.blank] = 0
        ends_I = np.cumsum(counts_I + blanks_I)
        pieces = np.stack([units_I, np.zeros_like(units_I)], 1).reshape(-1)
        units_O = np.repeat(pieces, np.stack([counts_I, blanks_I], 1).reshape(-1))
        begins_I = np.where(counts_I > 0, ends_I - counts_I - blanks_I, -1)
        return units_O, np.concatenate([[0], ends_I])[offsets], begins_I


def _fill(weights_KK: np.ndarray, table: dict, units: list[str], path: str) -> None:
    """Puts the rows of a table in their places."""
    place = {unit: i for i, unit in enumerate(units)}
    for name, row in table.items():
        for other in (name, *row):
            if other not in place:
                raise UserError(f"{path}: the training data has no unit {other}")
        weights_KK[place[name]] = 0
        for other, weight in row.items():
            weights_KK[place[name], place[other]] = weight * (other != name)


def _read_confusions(path: str) -> dict[str, dict[str, float]]:
    try:
        table = parse_json(Path(path).read_bytes())
        weights = [weight for row in table.values() for weight in row.values()]
        if not all(isinstance(weight, (int, float)) and weight >= 0 for weight in weights):
            raise ValueError
    except (ValueError, AttributeError):
        raise UserError(f'{path} is no table of confusions: it must be JSON such as {{"[zh]": {{"[z]": 3}}}}') from None
    return table

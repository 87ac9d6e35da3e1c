"""Which utterances go into which batch: a pure function of (durations, settings, seed, epoch).

So a position in training is two numbers, the epoch and the index of the next batch, and restoring it replays nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moe_asr.errors import UserError

_ORDER, _SPEED = 0, 1  # independent random streams of one epoch


@dataclass(frozen=True)
class Share:
    """Which batches of a plan are one process's, where several process a group of batches in a row together: the first
    of each group is that of process 0, the second that of process 1, and so on around.

    Args:
        process: Its number.
        processes: How many there are.
        group: Batches of a group.
    """

    process: int = 0
    processes: int = 1
    group: int = 1

    def has(self, number: int) -> bool:
        """Whether batch `number` of an epoch is this process's."""
        return number % self.group % self.processes == self.process


class BatchPlan:
    """Bucketing by duration: batches of like durations, of about equal padded duration, in random order.

    For epoch k: utterances are sorted by duration and parted into buckets of equal total duration; each bucket is
    shuffled; batches are cut so that (longest duration) * (number) <= `max_duration` and number <= `max_utterances`;
    and batches are shuffled.

    Args:
        durations: Of the utterances, in seconds.
        max_duration: Limit of a batch in seconds, padding included.
        num_buckets: More means less padding, and less variety in a batch.
        seed: Of all randomness here.
        shuffle: If False, buckets and seed do not matter: utterances go by falling duration, the same in each epoch.
        speed_factors: Each utterance is played at one of these speeds, drawn anew in each epoch.
        max_utterances: Limit of a batch in utterances; 0 for none.

    Raises:
        UserError: no utterances, or one that does not fit into a batch at its slowest.
    """

    def __init__(
        self,
        durations: Sequence[float],
        max_duration: float,
        num_buckets: int = 50,
        seed: int = 0,
        shuffle: bool = True,
        speed_factors: Sequence[float] = (1.0,),
        max_utterances: int = 0,
    ):
        self._durations = np.asarray(durations, dtype=np.float64)
        self._max_duration, self._num_buckets, self._seed, self._shuffle = max_duration, num_buckets, seed, shuffle
        self._factors = np.asarray(speed_factors, dtype=np.float64)
        self._max_utterances = max_utterances or len(self._durations)
        if not len(self._durations):
            raise UserError("no utterances to make batches of")
        if num_buckets < 1 or not len(self._factors) or self._factors.min() <= 0:
            raise UserError("num_buckets must be at least 1, and speed_factors positive and not empty")
        if max_utterances < 0:
            raise UserError(f"max_utterances is {max_utterances}; it must be at least 1, or 0 for no limit")
        slowest = self._durations / self._factors.min()
        too_long = int((slowest > max_duration).sum())
        if too_long:
            raise UserError(
                f"{too_long} of {len(slowest)} utterances are longer than max_duration {max_duration:g} s"
                f" (the longest {slowest.max():.1f} s): raise max_duration or reject them when preparing the data"
            )

    def speeds(self, epoch: int) -> np.ndarray:
        """The speed factor of each utterance in this epoch."""
        if len(self._factors) == 1:
            return np.full(len(self._durations), self._factors[0])
        return self._factors[self._random(epoch, _SPEED).integers(len(self._factors), size=len(self._durations))]

    def epoch(self, epoch: int) -> list[list[int]]:
        """The batches of this epoch, as indices into the durations; each utterance occurs once."""
        durations = self._durations / self.speeds(epoch)
        if not self._shuffle:
            return self._cut(np.argsort(-durations, kind="stable"), durations)
        random = self._random(epoch, _ORDER)
        order = np.argsort(durations, kind="stable")
        passed = np.cumsum(durations[order])
        bucket = np.minimum((passed * (self._num_buckets / passed[-1])).astype(np.int64), self._num_buckets - 1)
        # one sort shuffles inside all buckets: by bucket, then by a random key
        order = order[np.lexsort((random.random(len(order)), bucket))]
        batches = self._cut(order, durations)
        return [batches[i] for i in random.permutation(len(batches))]

    def _cut(self, order: np.ndarray, durations: np.ndarray) -> list[list[int]]:
        batches, batch, longest = [], [], 0.0
        for index, duration in zip(order.tolist(), durations[order].tolist()):
            longest = max(longest, duration)
            # a hair of room, for 10 * 0.1 is not 1 in binary
            too_long = longest * (len(batch) + 1) > self._max_duration * (1 + 1e-9)
            if batch and (too_long or len(batch) == self._max_utterances):
                batches.append(batch)
                batch, longest = [], duration
            batch.append(index)
        return [*batches, batch]

    def _random(self, epoch: int, stream: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence((self._seed, epoch, stream))))

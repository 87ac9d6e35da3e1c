"""The learning rate as a pure function of the numbers of update and epoch: a scheduler without state to save."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from moe_asr.errors import UserError


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate over the updates, as a factor of the peak.

    Args:
        kind: shape after the warm-up; inverse_sqrt is the one of the Transformer paper ("Noam")
        warmup_steps: updates over which the rate rises linearly to its peak
        decay_steps: update at which linear and cosine reach final_factor; unset: the length of the run as first started
        final_factor: where linear and cosine end, as a factor of the peak
        epoch_factor: factor that each epoch after the first multiplies the rate by, whatever the shape
    """

    kind: Literal["constant", "linear", "cosine", "inverse_sqrt"] = "constant"
    warmup_steps: int = 0
    decay_steps: int | None = None
    final_factor: float = 0.0
    epoch_factor: float = 1.0

    def __post_init__(self):
        if self.warmup_steps < 0:
            raise UserError(f"schedule.warmup_steps is {self.warmup_steps}; it must be 0 or more")
        if self.kind == "inverse_sqrt" and self.warmup_steps == 0:
            raise UserError(
                "schedule.kind inverse_sqrt has its peak at the end of the warm-up; set schedule.warmup_steps"
            )
        if self.decay_steps is not None and self.decay_steps <= self.warmup_steps:
            raise UserError(f"schedule.decay_steps ({self.decay_steps}) must be more than warmup_steps")
        if not self.epoch_factor > 0:
            raise UserError(f"schedule.epoch_factor is {self.epoch_factor}; it must be above 0")

    @property
    def needs_length(self) -> bool:
        """Whether the shape depends on a number of steps that the configuration leaves open."""
        return self.kind in ("linear", "cosine") and self.decay_steps is None


def learning_rate_factor(step: int, config: ScheduleConfig, decay_steps: int = 0, epoch: int = 0) -> float:
    """Factor of the peak learning rate for update number `step` = 1, 2, ... in epoch number `epoch` = 0, 1, ...

    With W = warmup_steps, D = decay_steps, f = final_factor and u = (step - W) / (D - W) kept within [0, 1] it is
    epoch_factor^epoch times

        step <= W      step / W
        constant       1
        linear         1 - (1 - f) u
        cosine         f + (1 - f) (1 + cos(pi u)) / 2
        inverse_sqrt   sqrt(W / step)

    Args:
        decay_steps: D where `config` leaves it open.
    """
    return config.epoch_factor**epoch * _shape(step, config, config.decay_steps or decay_steps)


def _shape(step: int, config: ScheduleConfig, end: int) -> float:
    warmup = config.warmup_steps
    if step <= warmup:
        return step / warmup
    if config.kind == "constant":
        return 1.0
    if config.kind == "inverse_sqrt":
        return math.sqrt(warmup / step)
    # A run no longer than its warm-up has nothing left to decay over.
    u = min(max((step - warmup) / max(end - warmup, 1), 0.0), 1.0)
    shape = 1 - u if config.kind == "linear" else (1 + math.cos(math.pi * u)) / 2
    return config.final_factor + (1 - config.final_factor) * shape

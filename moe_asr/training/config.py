"""What a training run can be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from moe_asr.errors import UserError
from moe_asr.training.optimizer import OptimConfig


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Args:
        max_epochs: Passes over the data after which the run ends.
        max_steps: Updates after which it ends, if that comes first.
        optim: Optimiser, parameter groups, learning rate, clipping.
        accumulate: Batches per update, of all processes together; their losses count as those of one large batch. How
            many processes share them changes nothing but the time.
        precision: fp32; or bf16 for forward and backward, with trained weights and updates in fp32.
        seed: Of dropout and augmentation.
        log_every: Updates per line of metrics.
        validate_unit: What validate_every counts.
        validate_every: Epochs or updates between validations; each also writes a checkpoint.
        save_every: Updates between further checkpoints; unset: none.
        keep_checkpoints: Newest checkpoints kept, at least 2, besides those that the average may need.
        average: Which of the validated checkpoints the final weights are the mean of.
        average_count: How many.
        best: What makes a checkpoint the best, on the validation data: the lowest loss or the highest accuracy; the
            earliest among equals.
        patience: Updates in a row with a non-finite loss or gradient after which the run stops; fewer are skipped.
        early_stopping: Validations without a new best after which the run ends; unset: never.
        tensorboard: Whether to write TensorBoard files.
    """

    max_epochs: int = 10
    max_steps: int | None = None
    optim: OptimConfig = field(default_factory=OptimConfig)
    accumulate: int = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0
    log_every: int = 50
    validate_unit: Literal["epoch", "step"] = "epoch"
    validate_every: int = 1
    save_every: int | None = None
    keep_checkpoints: int = 2
    average: Literal["last", "best"] = "last"
    average_count: int = 1
    best: Literal["loss", "accuracy"] = "loss"
    patience: int = 10
    early_stopping: int | None = None
    tensorboard: bool = True

    def __post_init__(self):
        least = {"accumulate": 1, "log_every": 1, "validate_every": 1, "keep_checkpoints": 2, "average_count": 1}
        least |= {"patience": 1, "save_every": 1, "early_stopping": 1, "max_epochs": 0, "max_steps": 0}
        for name, minimum in least.items():
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise UserError(f"{name} is {value}; it must be at least {minimum}")


# What may change when a run goes on: how long, how it is watched and kept; never what an update does.
FREE_KEYS = frozenset(
    [
        "max_epochs",
        "max_steps",
        "log_every",
        "save_every",
        "keep_checkpoints",
        "average",
        "average_count",
        "patience",
        "early_stopping",
        "tensorboard",
    ]
)

"""One update of the weights, and the sums of losses that validation shares with it.

Every batch seeds its own randomness from its position in the data, see `batch_seed`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from moe_asr.training.distributed import global_sum, rank, world_size
from moe_asr.training.optimizer import set_learning_rate

# forward(batch, generator) -> loss with `total`, `count` and `parts`, all of them sums over the batch
Forward = Callable[[Any, torch.Generator | None], Any]


def batch_seed(seed: int, epoch: int, batch: int, stream: str) -> int:
    """A seed for one batch: a pure function of the run's seed and the batch's position.

    So dropout and augmentation of a batch do not depend on what ran before it: not on validation, not on skipped
    updates, not on how often the run was interrupted; and no generator's state has to be saved.

    Args:
        stream: name of the use, so that different uses draw independent numbers
    """
    digest = hashlib.blake2b(f"{seed} {rank()} {epoch} {batch} {stream}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass
class LossSums:
    """A loss and its parts, summed over batches, and the count that normalises them."""

    total: float = 0.0
    count: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)

    def add(self, other: LossSums) -> None:
        self.total += other.total
        self.count += other.count
        for name, value in other.parts.items():
            self.parts[name] = self.parts.get(name, 0.0) + value

    @property
    def loss(self) -> float:
        return self.total / self.count if self.count else math.nan

    @property
    def means(self) -> dict[str, float]:
        return {name: value / self.count if self.count else math.nan for name, value in self.parts.items()}


@dataclass(frozen=True)
class Update:
    """What came of an update.

    Args:
        sums: loss over all its batches and processes
        grad_norm: Euclidean norm of the gradient of the normalised loss, before clipping; of the group that has its
            turn where groups alternate
        made: False if loss or gradient was not finite: then weights and optimiser are as before
        bad_batches: where it was not made, the batches at fault: those of non-finite loss, or else all
        unreached: parameters that should train and got no gradient
    """

    sums: LossSums
    grad_norm: float
    made: bool
    bad_batches: tuple[int, ...] = ()
    unreached: tuple[str, ...] = ()


class Updater:
    """Makes updates: AdamW on the gradient of  sum_b total_b / sum_b count_b,  clipped to a largest norm.

    b runs over the batches of one update, on all processes; so several small batches are one large one, however
    unequal their counts.
    """

    def __init__(
        self,
        forward: Forward,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        clip_grad_norm: float | None = None,
        precision: str = "fp32",
        seed: int = 0,
    ) -> None:
        self._forward, self.optimizer, self.device = forward, optimizer, device
        self._limit = clip_grad_norm or math.inf
        self._bf16, self._seed = precision == "bf16", seed

    def __call__(self, batches: Sequence, epoch: int, first: int, lr: float, turn: int | None = None) -> Update:
        """Consumes `batches`, the first of which is number `first` of its epoch, at learning rate `lr`.

        Args:
            turn: the only groups to update are those of this turn, see `optimizer.turns`; None: all
        """
        losses = []
        for number, batch in enumerate(batches, first):
            torch.manual_seed(batch_seed(self._seed, epoch, number, "model"))
            generator = torch.Generator().manual_seed(batch_seed(self._seed, epoch, number, "augmentation"))
            loss = self.forward(batch, generator)
            loss.total.backward()
            losses.append(loss)
        names, summed = _sum(losses, self.device)
        summed = global_sum(summed)
        groups = self.optimizer.param_groups
        named = [pair for group in groups for pair in zip(group["names"], group["params"])]
        unreached = tuple(name for name, p in named if p.grad is None)
        for parameter in (p for group in groups if turn not in (None, group["turn"]) for p in group["params"]):
            parameter.grad = None  # so that the optimiser passes it over: weights, running means and counts stay
        grads = [p.grad for _, p in named if p.grad is not None]
        # Data parallelism leaves the mean of the processes' gradients, where the loss is a sum over them.
        norm = torch.nn.utils.get_total_norm(grads).double() * world_size() / summed[1]
        totals = torch.stack([loss.total.detach().double() for loss in losses])
        values = torch.cat([norm[None], totals, summed]).tolist()  # the one wait for the device
        grad_norm, totals, summed = values[0], values[1 : 1 + len(losses)], values[1 + len(losses) :]
        sums = LossSums(summed[0], summed[1], dict(zip(names, summed[2:])))

        made = math.isfinite(sums.total) and math.isfinite(grad_norm) and sums.count > 0
        bad: tuple[int, ...] = ()
        if made:
            torch._foreach_mul_(grads, world_size() / sums.count * min(1.0, self._limit / max(grad_norm, 1e-30)))
            set_learning_rate(self.optimizer, lr)
            self.optimizer.step()
        else:
            bad = tuple(i for i, total in enumerate(totals) if not math.isfinite(total)) or tuple(range(len(losses)))
        self.optimizer.zero_grad(set_to_none=True)
        return Update(sums, grad_norm, made, bad, unreached)

    @torch.no_grad()
    def evaluate(self, batch: Any) -> LossSums:
        """The loss of one batch on all processes, without randomness and gradients; the model must be in eval mode."""
        names, summed = _sum([self.forward(batch, None)], self.device)
        total, count, *parts = global_sum(summed).tolist()
        return LossSums(total, count, dict(zip(names, parts)))

    def forward(self, batch: Any, generator: torch.Generator | None) -> Any:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._bf16):
            return self._forward(batch.to(self.device), generator)


def _sum(losses: Sequence, device: torch.device) -> tuple[list[str], Tensor]:
    """Names of the parts, and total, count and parts summed over `losses`, in float64 on the device."""
    names = sorted({name for loss in losses for name in loss.parts})
    rows = [[loss.total, loss.count, *(loss.parts.get(name, 0.0) for name in names)] for loss in losses]
    tensors = [[torch.as_tensor(x, dtype=torch.float64, device=device).detach() for x in row] for row in rows]
    return names, torch.stack([torch.stack(row) for row in tensors]).sum(0)

"""One update of the weights, and the sums of losses that validation shares with it.

Every batch seeds its own randomness from its position in the data, see `batch_seed`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from moe_asr.errors import UserError
from moe_asr.training.distributed import connection_broke, gather, others_ended, sum_gradients
from moe_asr.training.memory import Piece, in_pieces, out_of_memory
from moe_asr.training.optimizer import set_learning_rate

# forward(batch, generator) -> loss with `total`, `count` and `parts`, all of them sums over the batch
Forward = Callable[[Any, torch.Generator | None], Any]


def batch_seed(seed: int, epoch: int, batch: int, stream: str) -> int:
    """A seed for one batch: a pure function of the run's seed and the batch's position.

    So dropout and augmentation of a batch do not depend on what ran before it: not on validation, not on skipped
    updates, not on how often the run was interrupted, not on which process has the batch; and no generator's state has
    to be saved.

    Args:
        stream: name of the use, so that different uses draw independent numbers
    """
    digest = hashlib.blake2b(f"{seed} 0 {epoch} {batch} {stream}".encode(), digest_size=8).digest()
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
        made: False if loss or gradient was not finite, or there was nothing to compute: then weights and optimiser are
            as before
        bad_batches: where it was not made, the batches at fault: those of non-finite loss, or else all
        unreached: parameters that should train and got no gradient
        troubles: what went wrong with single batches of all processes: `reason`, and `ids` of the utterances
    """

    sums: LossSums
    grad_norm: float
    made: bool
    bad_batches: tuple[int, ...] = ()
    unreached: tuple[str, ...] = ()
    troubles: tuple[dict, ...] = ()


class Updater:
    """Makes updates: AdamW on the gradient of  sum_b total_b / sum_b count_b,  clipped to a largest norm.

    b runs over the batches of one update, on all processes; so several small batches are one large one, however
    unequal their counts, and however many processes share them.
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
        self.idle: Callable[[bool], None] | None = None
        """Where processes must compute equally often, what stands for a batch that this one lacks, see `sharding`."""

    def __call__(self, batches: Sequence, epoch: int, first: int, lr: float, turn: int | None = None) -> Update:
        """Consumes `batches`, the first of which is number `first` of its epoch, at learning rate `lr`.

        Args:
            batches: None stands for one that another process has; batches without utterances are passed over
            turn: the only groups to update are those of this turn, see `optimizer.turns`; None: all
        """

        def backward(piece: Piece) -> Any:
            streams = (f"{stream}{piece.path}" for stream in ("model", "augmentation"))
            model_seed, seed = (batch_seed(self._seed, epoch, piece.number, stream) for stream in streams)
            torch.manual_seed(model_seed)
            loss = self.forward(piece.batch, torch.Generator().manual_seed(seed))
            loss.total.backward()
            return loss

        pieces = [Piece(n, batch) for n, batch in enumerate(batches, first) if batch is not None and batch.ids]
        troubles: list[dict] = []
        losses = self._compute(
            pieces, backward, lambda: self.optimizer.zero_grad(set_to_none=True), _teller(troubles), True
        )
        groups = self.optimizer.param_groups
        sum_gradients([p for group in groups for p in group["params"]])
        named = [pair for group in groups for pair in zip(group["names"], group["params"])]
        unreached = tuple(name for name, p in named if p.grad is None)
        for parameter in (p for group in groups if turn not in (None, group["turn"]) for p in group["params"]):
            parameter.grad = None  # so that the optimiser passes it over: weights, running means and counts stay
        grads = [p.grad for _, p in named if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads).double().to(self.device)
        names, rows = _rows([loss for _, loss in losses], self.device)
        norm, *values = torch.cat([norm[None], rows.flatten()]).tolist()  # the one wait for the device
        own = [(n, asdict(sums)) for (n, _), sums in zip(losses, _sums(names, values))]
        by_batch = [(n, LossSums(**sums)) for found in gather(own) for n, sums in found]
        by_batch.sort(key=lambda pair: pair[0])  # so that sums do not depend on who has which batch
        sums = _total(s for _, s in by_batch)
        grad_norm = norm / sums.count if sums.count else math.nan

        made = math.isfinite(sums.total) and math.isfinite(grad_norm) and sums.count > 0
        bad: tuple[int, ...] = ()
        if made:
            torch._foreach_mul_(grads, 1 / sums.count * min(1.0, self._limit / max(grad_norm, 1e-30)))
            set_learning_rate(self.optimizer, lr)
            self.optimizer.step()
        else:
            infinite = sorted({n - first for n, s in by_batch if not math.isfinite(s.total)})
            bad = tuple(infinite) or tuple(range(len(batches)))
        self.optimizer.zero_grad(set_to_none=True)
        return Update(sums, grad_norm, made, bad, unreached, tuple(troubles))

    @torch.no_grad()
    def evaluate(self, batch: Any) -> LossSums:
        """The loss of one batch, without randomness and gradients; the model must be in eval mode.

        Args:
            batch: None if only other processes have one
        """
        pieces = [Piece(0, batch)] if batch is not None and batch.ids else []
        losses = self._compute(
            pieces, lambda piece: self.forward(piece.batch, None), lambda: None, lambda *_: None, False
        )
        names, rows = _rows([loss for _, loss in losses], self.device)
        return _total(_sums(names, rows.flatten().tolist()))

    def _compute(self, pieces: list[Piece], compute, again, say, backwards: bool) -> list[tuple[int, Any]]:
        """See `in_pieces`; with `idle`, in whole batches and as often as the process that has most of them."""
        if self.idle is None:
            return in_pieces(pieces, compute, again, say)
        most = max(gather(len(pieces)))
        try:
            results = [(piece.number, compute(piece)) for piece in pieces]
            for _ in range(most - len(pieces)):
                self.idle(backwards)
        except (RuntimeError, MemoryError) as error:
            if connection_broke(error):
                raise others_ended(error) from error
            if not out_of_memory(error):
                raise
            raise UserError(
                "out of memory, and with shard_frozen no batch is computed in parts: lower data.max_duration"
            ) from error
        return results

    def forward(self, batch: Any, generator: torch.Generator | None) -> Any:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._bf16):
            return self._forward(batch.to(self.device), generator)


def _teller(troubles: list[dict]) -> Callable[[str, Any], None]:
    return lambda reason, batch: troubles.append({"reason": reason, "ids": list(batch.ids)})


def _rows(losses: Sequence, device: torch.device) -> tuple[list[str], Tensor]:
    """Names of the parts, and a row for each loss in float64 on the device: total, count, parts."""
    names = sorted({name for loss in losses for name in loss.parts})
    rows = [[loss.total, loss.count, *(loss.parts.get(name, 0.0) for name in names)] for loss in losses]
    tensors = [[torch.as_tensor(x, dtype=torch.float64, device=device).detach() for x in row] for row in rows]
    return names, torch.stack([torch.stack(row) for row in tensors]) if rows else torch.zeros(0, device=device)


def _sums(names: list[str], values: Sequence[float]) -> list[LossSums]:
    """The inverse of `_rows`, from all its numbers."""
    width = 2 + len(names)
    rows = [values[start : start + width] for start in range(0, len(values), width)]
    return [LossSums(total, count, dict(zip(names, parts))) for total, count, *parts in rows]


def _total(sums: Iterable[LossSums]) -> LossSums:
    total = LossSums()
    for one in sums:
        total.add(one)
    return total

"""A regression small enough to train in milliseconds, with everything a recogniser has: dropout, augmentation, ids."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from moe_asr.training.config import TrainConfig
from moe_asr.training.loop import Trainer
from moe_asr.training.optimizer import OptimConfig, trainable_parameters


@dataclass(frozen=True)
class ToyLoss:
    total: Tensor
    count: int
    parts: dict[str, Tensor]


@dataclass(frozen=True)
class ToyBatch:
    ids: list[str]
    x_NI: Tensor
    y_N: Tensor

    def to(self, device) -> ToyBatch:
        return replace(self, x_NI=self.x_NI.to(device), y_N=self.y_N.to(device))

    @property
    def seconds(self) -> float:
        return float(len(self.ids))


class Toy(nn.Module):
    def __init__(self, dropout: float = 0.0, noise: float = 0.0, dtype=torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.norm, self.out = nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 1)
        self.dropout, self.noise = nn.Dropout(dropout), noise
        self.register_buffer("constant", torch.ones(3))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.to(dtype)
        self.ids_seen: list[list[str]] = []

    def forward(self, batch: ToyBatch, generator) -> ToyLoss:
        x = batch.x_NI
        if generator is not None:
            self.seen += len(batch.ids)
            self.ids_seen.append(batch.ids)
            x = x + self.noise * torch.randn(x.shape, generator=generator, dtype=x.dtype)
        error_N = self.out(self.dropout(self.norm(self.hidden(x)).relu())).squeeze(1) - batch.y_N
        parts = {"absolute": error_N.abs().sum(), "accuracy": (error_N.abs() < 1).sum()}
        return ToyLoss((error_N**2).sum(), len(batch.ids), parts)


def batches(epoch: int, start: int = 0, sizes=(3, 1, 4, 2, 5), dtype=torch.float32) -> list[ToyBatch]:
    """An epoch of batches of uneven sizes, a pure function of its number."""
    generator = torch.Generator().manual_seed(100 + epoch)
    found = []
    for number, size in enumerate(sizes):
        x = torch.randn(size, 4, generator=generator, dtype=torch.float64).to(dtype)
        ids = [f"e{epoch}-b{number}-u{i}" for i in range(size)]
        found.append(ToyBatch(ids, x, x[:, 0] - 2 * x[:, 1]))
    return found[start:]


def config(**changes) -> TrainConfig:
    """A short run without TensorBoard; `lr` is that of the optimiser."""
    lr = changes.pop("lr", 0.01)
    return TrainConfig(
        **{"max_epochs": 3, "log_every": 1, "tensorboard": False, "optim": OptimConfig(lr=lr), **changes}
    )


def trainer(model: Toy, run_dir: Path, train_config: TrainConfig, **changes) -> Trainer:
    changes.setdefault("trainable", list(trainable_parameters(model)))
    changes.setdefault("valid_batches", lambda: batches(99))
    changes.setdefault("train_batches", batches)
    changes.setdefault("forward", model)
    return Trainer(model, config=train_config, run_dir=run_dir, **changes)


def metrics(run_dir: Path) -> list[dict]:
    """What is in metrics.jsonl, without the times."""
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if "seconds" not in k} for r in records]

"""Dropout that is cheap on a CPU."""

from __future__ import annotations

import torch
from torch import nn


class Dropout(nn.Dropout):
    """y = x * keep / (1 - p), with P(keep = 0) = p to within 2^-16.

    On a CPU `nn.Dropout` draws one random number per element, in one thread, which is a sixth of a training step of a
    small Conformer. Here one 64-bit draw decides four elements, and a product takes the place of a branch.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p in (0, 1) or x.device.type != "cpu":
            return super().forward(x)
        draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        keep = draws.view(torch.int16)[: x.numel()].view(x.shape) >= round(self.p * 2**16) - 2**15
        return x * keep * (1 / (1 - self.p))

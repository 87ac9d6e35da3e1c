"""Decoding in lower precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import nn

Precision = Literal["fp32", "bf16"]


def lower_weights(model: nn.Module, precision: Precision) -> None:
    """For bf16, puts the weights of linear, convolution and embedding layers into it, for good.

    Autocast would put them into it again at each step. Norms, experts and weights of 4 bits stay as they are.
    """
    if precision == "bf16":
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding)):
                for parameter in module.parameters(recurse=False):
                    parameter.data = parameter.data.to(torch.bfloat16)


def computing_in(precision: Precision, device: torch.device | str) -> AbstractContextManager:
    """Inside, products are computed in this precision; sums of log-probabilities never are."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16)

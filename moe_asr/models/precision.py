"""Computing in lower precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import nn

Precision = Literal["fp32", "bf16"]


def lower_weights(model: nn.Module, precision: Precision, parts: tuple[str, ...] = ("",)) -> None:
    """For bf16, puts the weights of linear, convolution and embedding layers into it, for good.

    Autocast would put them into it again at each step, and where gradients pass a layer keep that copy until they do.
    Norms, experts and weights of 4 bits stay as they are, and positions, so that what is added to them and to each
    other from layer to layer is in full precision.

    Args:
        parts: beginnings of the names of the layers that it is about
    """
    if precision == "bf16":
        for name, module in model.named_modules():
            large = isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding))
            if large and name.startswith(parts) and not name.endswith("embed_positions"):
                for parameter in module.parameters(recurse=False):
                    parameter.data = parameter.data.to(torch.bfloat16)


def computing_in(precision: Precision, device: torch.device | str) -> AbstractContextManager:
    """Inside, products are computed in this precision; sums of log-probabilities never are."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16)

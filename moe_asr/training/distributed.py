"""The few things a run must know about its processes; with one process all of them are trivial."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """This process's number, 0 where there is only one."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def global_sum(values: Tensor) -> Tensor:
    """The sum of `values` over all processes: the only place where losses and counts meet."""
    if world_size() == 1:
        return values
    summed = values.clone()
    dist.all_reduce(summed, op=dist.ReduceOp.SUM)
    return summed

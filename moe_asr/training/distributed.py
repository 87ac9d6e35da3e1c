"""The few things a run must know about its processes; with one process all of them are trivial.

Data parallel training is plain: each process computes the gradients of its own batches of an update, and the sums over
all processes are what the optimiser of each sees, so that all hold the same weights. DistributedDataParallel would give
the mean, where the loss is a sum that the global count normalises, and would have to be told of experts that no batch
of a process was sent to; here a parameter has a gradient if it has one on any process, as with one process.

Started by torchrun, or with RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT set in some other way.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from moe_asr.config import one_line
from moe_asr.errors import UserError

_CHUNK = 1 << 24  # numbers that are summed in one go


def rank() -> int:
    """This process's number, 0 where there is only one."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@contextmanager
def processes() -> Iterator[None]:
    """Within it the processes that the environment tells of know each other.

    Raises:
        UserError: another process has ended, and with it the run; or the environment is incomplete.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    except (ValueError, RuntimeError) as error:
        raise UserError(f"the processes do not find each other: {one_line(error)}") from None
    try:
        yield
        barrier()
    except BaseException as error:
        _leave_word(error)
        raise
    finally:
        dist.destroy_process_group()


def gather(value: Any) -> list:
    """What each process gave, in the order of their numbers; plain values that JSON holds, floats exactly."""
    if world_size() == 1:
        return [value]
    own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    with _naming_the_lost():
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(world_size())]
        dist.all_gather(sizes, torch.tensor([len(own)]))
        longest = int(max(sizes))
        found = [torch.zeros(longest, dtype=torch.uint8) for _ in sizes]
        dist.all_gather(found, torch.nn.functional.pad(own, (0, longest - len(own))))
    return [json.loads(bytes(part[: int(size)].tolist())) for part, size in zip(found, sizes)]


def barrier() -> None:
    """Waits until all processes are here."""
    gather(None)


def from_first(find: Callable[[], Any]) -> Any:
    """What `find` gives to the first process, for all of them; it may raise a UserError, which then all do."""
    found, failed = None, None
    if rank() == 0:
        try:
            found = find()
        except UserError as error:
            failed = error
    if world_size() == 1 and failed:
        raise failed
    found, reason = gather([found, str(failed) if failed else None])[0]
    if reason is not None:
        raise failed or UserError(reason)
    return found


def sum_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Replaces gradients by their sums over all processes. A parameter that has none on any process keeps none."""
    if world_size() == 1:
        return
    reached = [any(flags) for flags in zip(*gather([p.grad is not None for p in parameters]))]
    kinds: dict[tuple, list[torch.nn.Parameter]] = {}
    for parameter in (p for p, has in zip(parameters, reached) if has):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        kinds.setdefault((parameter.dtype, parameter.device), []).append(parameter)
    for group in kinds.values():
        for chunk in _chunks(group):
            flat = torch.cat([p.grad.flatten() for p in chunk])
            with _naming_the_lost():
                dist.all_reduce(flat)
            for p, part in zip(chunk, flat.split([p.numel() for p in chunk])):
                p.grad.copy_(part.view_as(p.grad))


def _chunks(parameters: Sequence[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    chunk: list[torch.nn.Parameter] = []
    for parameter in parameters:
        if chunk and sum(p.numel() for p in chunk) + parameter.numel() > _CHUNK:
            yield chunk
            chunk = []
        chunk.append(parameter)
    yield chunk


class OthersEnded(UserError):
    """Another process has ended, so this one cannot go on."""


@contextmanager
def _naming_the_lost() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # what torch raises when a connection breaks
        raise others_ended(error) from error


def connection_broke(error: Exception) -> bool:
    """Whether an error in the midst of computing is one of the connection to another process."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def others_ended(error: Exception) -> OthersEnded:
    """What to raise for an error of the connection: the words of the process that has ended, if it left any."""
    return OthersEnded(_words() or _lost(error))


def _lost(error: Exception) -> str:
    others = [number for number in range(world_size()) if number != rank()]
    who = f"process {others[0]}" if len(others) == 1 else "another process"
    return (
        f"{who} of {world_size()} has ended without a word (killed? out of memory?): {one_line(error)[:200]};"
        " the same command goes on from the last checkpoint"
    )


def _words() -> str:
    """What processes that ended have left word of."""
    try:
        store = dist.distributed_c10d._get_default_store()
        names = [f"ended/{number}" for number in range(world_size())]
        found = [store.get(name).decode() for name in names if store.check([name])]
    except (RuntimeError, ValueError):  # it was kept by the process that has ended
        return ""
    return "; ".join(found)


def _leave_word(error: BaseException) -> None:
    if isinstance(error, OthersEnded):
        return
    reason = one_line(error) or type(error).__name__
    try:
        store = dist.distributed_c10d._get_default_store()
        store.set(f"ended/{rank()}", f"process {rank()} of {world_size()} has ended: {reason}")
    except (RuntimeError, ValueError):
        pass

import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from moe_asr.errors import UserError
from moe_asr.training.distributed import barrier, from_first, gather, rank, sum_gradients, world_size


def parameters(*values):
    """Parameters with these gradients; None for one that has none."""
    found = [torch.nn.Parameter(torch.zeros(3)) for _ in values]
    for parameter, value in zip(found, values):
        parameter.grad = None if value is None else torch.full((3,), value)
    return found


def refuse():
    raise UserError("no")


def one_of_two(number: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=number, world_size=2)
    assert (rank(), world_size()) == (number, 2)
    value = {"a": [0.1 + number, float("inf"), None], "ü": "x" * 100 * number}
    assert gather(value) == [{"a": [0.1 + n, float("inf"), None], "ü": "x" * 100 * n} for n in range(2)]
    given = [(1.5, None, None, 0.1), (0.25, 2.0, None, 0.2)][number]
    found = parameters(*given)
    sum_gradients(found)
    sums = [None if p.grad is None else p.grad.tolist() for p in found]
    assert sums == [[1.75] * 3, [2.0] * 3, None, (torch.full((3,), 0.1) + 0.2).tolist()]
    assert from_first(lambda: f"of {rank()}") == "of 0"
    with pytest.raises(UserError, match="no"):
        from_first(refuse)
    barrier()
    (folder / f"done-{number}").touch()
    dist.destroy_process_group()


def test_one_process():
    found = parameters(1.0, None)
    sum_gradients(found)
    assert (rank(), world_size()) == (0, 1) and found[1].grad is None and found[0].grad.tolist() == [1.0] * 3
    assert gather("x") == ["x"] and from_first(lambda: 3) == 3
    with pytest.raises(UserError, match="no"):
        from_first(refuse)


def test_two_processes(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=one_of_two, args=(number, tmp_path)) for number in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert sorted(path.name for path in tmp_path.glob("done-*")) == ["done-0", "done-1"]

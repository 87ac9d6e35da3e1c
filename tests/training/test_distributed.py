import multiprocessing
from pathlib import Path

import torch
import torch.distributed as dist

from moe_asr.training.distributed import global_sum, rank, world_size


def one_of_two(number: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=number, world_size=2)
    values = torch.tensor([1.0 + number, 0.1], dtype=torch.float64)
    summed = global_sum(values)
    assert (rank(), world_size()) == (number, 2)
    assert summed.tolist() == [3.0, 0.2] and values[0] == 1.0 + number
    (folder / f"done-{number}").touch()
    dist.destroy_process_group()


def test_one_process():
    values = torch.tensor([1.0, 2.0])
    assert (rank(), world_size()) == (0, 1)
    assert torch.equal(global_sum(values), values)


def test_two_processes(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=one_of_two, args=(number, tmp_path)) for number in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert sorted(path.name for path in tmp_path.glob("done-*")) == ["done-0", "done-1"]

"""Training runs of several processes."""

import json
import multiprocessing
import os
import socket
import sys
from pathlib import Path

from moe_asr.config import run_command, save_config
from moe_asr.training.run import RunConfig, train


def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def run(config, count, before=lambda rank: None):
    """Trains with `count` processes as a command does; returns their exit codes and what they say on stderr."""
    folder, place = Path(config.exp_dir).with_suffix(".said"), str(port())
    folder.mkdir(exist_ok=True)

    def one(rank):
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=place)
        sys.stderr = open(folder / str(rank), "w")
        before(rank)
        save_config(config, folder / f"{rank}.yaml")
        run_command(RunConfig, train, ["--config", str(folder / f"{rank}.yaml")])

    processes = [multiprocessing.get_context("fork").Process(target=one, args=(rank,)) for rank in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(900)
    return [process.exitcode for process in processes], [(folder / str(rank)).read_text() for rank in range(count)]


def trace(folder):
    records = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if "seconds" not in k} for r in records]

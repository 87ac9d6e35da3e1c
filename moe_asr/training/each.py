"""One training run for each of many names, of one configuration: for each speaker, say.

    python -m moe_asr.bin.train_each --config conf/x.yaml --names data/speakers.txt --job 1 --num_jobs 4 \
        --exp_dir 'exp/x/{name}' --data.speaker '{name}' --valid.speaker '{name}'

A job's runs go one after the other in one process, since starting a process takes longer than many of them.
"""

from __future__ import annotations

import dataclasses
import gc
import io
import os
import time
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

from moe_asr.config import one_line
from moe_asr.data.splits import read_speakers
from moe_asr.errors import UserError
from moe_asr.files import check_folder_name
from moe_asr.training.run import RunConfig, train

PLACE = "{name}"


@dataclass(frozen=True, kw_only=True)
class EachConfig(RunConfig):
    """Trains once for each name. All options are those of `train`, with {name} replaced wherever it occurs.

    Args:
        names: text file with one name a line
        job: number of this job, from 1; it takes the names number job, job + num_jobs, ...
        num_jobs: jobs that the names are divided among
    """

    names: str
    job: int = 1
    num_jobs: int = 1


def train_each(config: EachConfig) -> None:
    """Runs `train` for each name of this job, and prints a line for each; what a run says is in its own train.log.

    A run that fails does not keep the others from theirs. A signal ends the one that it meets, and with it all.

    Raises:
        UserError: the options or names cannot be used, or some runs failed; it names them with their reasons
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("train_each runs in one process; share the names out among jobs, with job and num_jobs")
    everyone = _names(config)
    names = everyone[config.job - 1 :: config.num_jobs]
    if not names:
        count = f"there {'is 1 name' if len(everyone) == 1 else f'are {len(everyone)} names'}"
        print(f"nothing to do for job {config.job} of {config.num_jobs}: {count}")
    failed: dict[str, str] = {}
    for name in names:
        start = time.perf_counter()
        try:
            with redirect_stdout(io.StringIO()):
                progress = train(one_run(config, name))
            figure = "not finite" if progress.best is None else f"{progress.best:.4g}"
            outcome = f"{progress.step} updates, best validation {config.train.best} {figure}"
        except (UserError, OSError) as error:
            failed[name] = one_line(error)
            outcome = f"failed: {failed[name]}"
        print(f"{name}: {outcome}, {time.perf_counter() - start:.1f} s", flush=True)
        gc.collect()  # modules and their hooks refer to each other: without it two models are in memory
    if failed:
        raise UserError(f"{len(failed)} of {len(names)} runs failed: {_listed(failed)}")


def one_run(config: EachConfig, name: str) -> RunConfig:
    """The configuration of the run for one name."""
    fields = dataclasses.fields(RunConfig)
    return RunConfig(**{field.name: _with_name(getattr(config, field.name), name) for field in fields})


def _listed(failed: dict[str, str]) -> str:
    """Names and their reasons, each reason once."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in failed.items():
        by_reason.setdefault(reason, []).append(name)
    return "; ".join(f"{', '.join(names)} ({reason})" for reason, names in by_reason.items())


def _with_name(value: Any, name: str) -> Any:
    if isinstance(value, str):
        return value.replace(PLACE, name)
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return dataclasses.replace(value, **{f.name: _with_name(getattr(value, f.name), name) for f in fields})
    if isinstance(value, dict):
        return {key: _with_name(item, name) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_with_name(item, name) for item in value)
    return value


def _names(config: EachConfig) -> list[str]:
    if not 1 <= config.job <= config.num_jobs:
        raise UserError(f"job is {config.job}; it must be from 1 to num_jobs, {config.num_jobs}")
    if PLACE not in config.exp_dir:
        raise UserError(f"exp_dir must contain {PLACE}, so that each run has a folder of its own")
    names = read_speakers(config.names)
    for name in names:
        check_folder_name(name, config.names)
    return names

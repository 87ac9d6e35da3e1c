"""A run in its folder, alone: going on with what lies there, or throwing it away where settings changed."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Optional, Protocol

from moe_asr.config import load_config, to_plain
from moe_asr.errors import SettingsChanged, UserError
from moe_asr.files import lock_folder
from moe_asr.training.config import TrainConfig
from moe_asr.training.distributed import from_first, rank
from moe_asr.training.loop import Trainer

# What a run leaves in its folder, and what starting anew removes.
_LOGS = ("train.log", "metrics.jsonl", "skipped.jsonl", "tensorboard", "routing")
_OUTCOME = ("config.yaml", *_LOGS, "checkpoints", "final")
_OTHER_SETTINGS = (
    "train", "exp_dir", "device", "on_change", "encoder_cache", "gradient_checkpointing", "shard_frozen",
)  # fmt: skip


class RunSettings(Protocol):
    """What the configuration of every run has."""

    exp_dir: str
    train: TrainConfig
    on_change: Literal["error", "restart"]


@contextmanager
def run_folder(config: RunSettings) -> Iterator[Path]:
    """The folder of a run, made if missing, and no other run in it; says at the end where the outcome is.

    Raises:
        UserError: another process is training there
    """
    exp_dir = Path(config.exp_dir)
    exp_dir.mkdir(parents=True, exist_ok=True)
    lock = from_first(lambda: lock_folder(exp_dir, "training in"))
    try:
        yield exp_dir
    finally:
        if rank() == 0:
            os.close(lock)
    if rank() == 0:
        print(f"saved {exp_dir / 'final'}")


def run_identity(config: RunSettings, files: Iterable[str]) -> dict:
    """All but the training settings that makes a run what it is, contents of files included."""
    return {
        **{key: value for key, value in to_plain(config).items() if key not in _OTHER_SETTINGS},
        "contents": {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in files},
    }


def start_trainer(config: RunSettings, start: Callable[[], Trainer]) -> Trainer:
    """The trainer that `start` makes, in an empty folder if the run there had other settings and `on_change` says so.

    Raises:
        UserError: the settings changed and `on_change` is error, or see `Trainer`
    """
    if config.on_change == "error":
        return start()
    if from_first(lambda: _finished_otherwise(config)):
        _remove_outcome(config, "the finished run had other training settings")
    try:
        return start()
    except SettingsChanged as error:
        _remove_outcome(config, str(error).partition(" and cannot")[0])
        return start()


def is_finished(config: RunSettings) -> bool:
    """Whether the outcome of a run with these training settings lies there; what else it was made of is not looked at.

    The configuration is written when a run begins, the outcome when it ends: an older outcome is of an earlier length.
    """
    exp_dir = Path(config.exp_dir)
    return bool(_finished_as(config)) and _written(exp_dir / "final") >= _written(exp_dir / "config.yaml")


def _written(path: Path) -> float:
    return path.stat().st_mtime


def _finished_otherwise(config: RunSettings) -> bool:
    """Whether there is a finished run of other settings, also of those with which an unfinished run may go on."""
    return _finished_as(config) is False


def _finished_as(config: RunSettings) -> Optional[bool]:
    """Whether a finished run had these training settings; None where none is finished."""
    saved = Path(config.exp_dir) / "config.yaml"
    if not (Path(config.exp_dir) / "final").is_dir() or not saved.is_file():
        return None
    try:
        return load_config(type(config), saved).train == config.train
    except UserError:  # of another version
        return False


def _remove_outcome(config: RunSettings, why: str) -> None:
    from_first(lambda: _remove(config, why))


def _remove(config: RunSettings, why: str) -> None:
    print(f"starting anew: {why}")
    for name in _OUTCOME:
        path = Path(config.exp_dir) / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

"""Everything a run needs to go on exactly where it was: saved, found again, and refused where it does not fit."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from moe_asr.config import to_plain
from moe_asr.errors import SettingsChanged, UserError
from moe_asr.files import remove_leftovers
from moe_asr.training import checkpoint as ckpt
from moe_asr.training.config import FREE_KEYS, TrainConfig
from moe_asr.training.distributed import barrier, from_first, rank
from moe_asr.training.optimizer import load_optimizer_tensors, optimizer_tensors
from moe_asr.training.update import LossSums
from moe_asr.training.weights import ChangingWeights


@dataclass
class Progress:
    """All of a run's state that is not a tensor. There is none of random generators: each batch seeds its own.

    Args:
        epoch: Number of the current epoch, from 0.
        batch: Batches of this epoch that were consumed; what loader workers have prefetched does not count.
        step: Updates made.
        skipped: Updates not made because loss or gradient was not finite.
        troubles: Batches that were not what they should be and were used all the same: audio that could not be read,
            too little memory, processes that died.
        skipped_in_a_row: The same since the last update.
        decay_steps: Length of the learning rate's decay where the configuration leaves it open; fixed at the start.
        milestone: Step of the last milestone (validation or end of the run), -1 before the first.
        valid: What the best is chosen by (loss or accuracy) there; None without validation, or if it was not finite.
        best: The best so far.
        milestones_since_best: For early stopping.
        window: Loss since the last line of metrics.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    skipped: int = 0
    troubles: int = 0
    skipped_in_a_row: int = 0
    decay_steps: int | None = None
    milestone: int = -1
    valid: float | None = None
    best: float | None = None
    milestones_since_best: int = 0
    window: LossSums = field(default_factory=LossSums)

    @property
    def position(self) -> tuple[int, int]:
        return self.epoch, self.batch

    def restore(self, values: dict[str, Any]) -> None:
        """Takes over what `dataclasses.asdict` gave."""
        for name, value in values.items():
            setattr(self, name, LossSums(**value) if name == "window" else value)


class RunState:
    """Weights, optimiser and progress of one run, and the checkpoints they are kept in.

    Args:
        identity: whatever besides `config` makes the run what it is; may not change when it goes on
    """

    def __init__(
        self, folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, config: TrainConfig, identity: dict
    ) -> None:
        self.folder, self.optimizer, self.config = folder, optimizer, config
        self.weights = ChangingWeights(model)
        self.progress = Progress()
        self._settings = {"train": to_plain(config), **to_plain(identity)}
        self._saved: tuple | None = None

    def resume(self) -> list[str]:
        """Takes over the newest intact checkpoint, if there is any. Returns lines that tell of it.

        Raises:
            UserError: none is intact, or the run was started with other settings or another model.
        """
        lines: list[str] = []
        if rank() == 0:
            remove_leftovers(self.folder)
        newest = from_first(lambda: _name(ckpt.newest_checkpoint(self.folder, lines.append)))
        if newest is None:
            return lines
        newest = self.folder / newest
        state = ckpt.read_state(newest)
        check_unchanged(state["settings"], self._settings, {f"train.{key}" for key in FREE_KEYS})
        self.weights.load(ckpt.read_tensors(newest, ckpt.MODEL), f"checkpoint {newest}")
        load_optimizer_tensors(self.optimizer, ckpt.read_tensors(newest, ckpt.OPTIMIZER))
        self.progress.restore(state["progress"])
        self._saved = self._place()
        p = self.progress
        return [*lines, f"going on from {newest.name}: epoch {p.epoch + 1}, {p.batch} of its batches done"]

    def save(self) -> None:
        """Writes a checkpoint of this moment unless there is one, and removes those no longer needed.

        Raises:
            UserError: it cannot be written; earlier ones are untouched.
        """
        place = self._place()
        if place == self._saved or rank() != 0:
            return
        progress, config = self.progress, self.config
        state = {
            "milestone": progress.milestone == progress.step,
            "valid": progress.valid,
            "progress": dataclasses.asdict(progress),
            "settings": self._settings,
        }
        folder = ckpt.checkpoint_folder(self.folder, progress.step)
        ckpt.write_checkpoint(folder, self.weights.tensors(), optimizer_tensors(self.optimizer), state)
        self._saved = place
        keep = [
            *self._milestones("best", config.average_count if config.average == "best" else 1),
            *self._milestones("last", config.average_count if config.average == "last" else 1),
        ]
        ckpt.prune_checkpoints(self.folder, config.keep_checkpoints, keep)

    def average(self) -> list[Path]:
        """Gives the model the mean of the milestones that the configuration asks for. Returns their folders."""
        barrier()  # they are there when the first process has written them
        folders = self._milestones(self.config.average, self.config.average_count)
        if not folders:
            raise UserError(f"no checkpoint in {self.folder} has a finite validation loss; use average: last")
        self.weights.load(ckpt.average_checkpoints(folders), str(self.folder))
        return folders

    def _milestones(self, which: Literal["last", "best"], count: int) -> list[Path]:
        best = "highest" if self.config.best == "accuracy" else "lowest"
        return ckpt.choose_milestones(self.folder, best if which == "best" else "last", count)

    def _place(self) -> tuple:
        p = self.progress
        return p.epoch, p.batch, p.step, p.milestone


def _name(folder: Path | None) -> str | None:
    return folder.name if folder else None


def check_unchanged(old: dict, new: dict, free: set[str]) -> None:
    """Refuses to go on with a run under other settings.

    Args:
        old: settings of the run so far, as plain nested dicts
        new: settings it should go on with
        free: dotted keys that may differ

    Raises:
        SettingsChanged: names the first key that differs, with both values.
    """
    changed = _first_change(old, new, free, "")
    if changed:
        key, before, now = changed
        raise SettingsChanged(
            f"this run was started with {key} = {before} and cannot go on with {now};"
            " put the old value back, or train into another folder"
        )


def _first_change(old: Any, new: Any, free: set[str], prefix: str) -> tuple[str, Any, Any] | None:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return None if old == new else (prefix, old, new)
    for key in [*old, *(key for key in new if key not in old)]:
        full = f"{prefix}.{key}" if prefix else key
        changed = None if full in free else _first_change(old.get(key, "unset"), new.get(key, "unset"), free, full)
        if changed:
            return changed
    return None

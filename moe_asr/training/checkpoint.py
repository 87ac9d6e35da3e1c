"""Checkpoints: small folders of safetensors and JSON, written atomically, verified when read, averaged at the end.

    checkpoints/step-00000120/
        model.safetensors        the weights that training changes
        optimizer.safetensors    the optimizer's state, flat, named `<parameter>|<key>`
        state.json               {"state": ..., "files": {name: sha256}, "sha256": of the two before}

A milestone is a checkpoint at a place the configuration fixes (a validation, the end); only milestones are averaged, so
that a run gives the same result however often it was interrupted and saved in between.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from moe_asr.errors import UserError
from moe_asr.files import atomic_folder
from moe_asr.strict_json import parse_json

MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
_NAME = re.compile(r"step-\d{8,}")


def checkpoint_folder(root: Path, step: int) -> Path:
    return root / f"step-{step:08d}"


def write_checkpoint(folder: Path, model: dict[str, Tensor], optimizer: dict[str, Tensor], state: dict) -> None:
    """Writes `folder` as a whole or not at all.

    Args:
        state: everything that is not a tensor, as JSON takes it; `milestone` and `valid` are looked at here.

    Raises:
        UserError: the disk is full or not writable; checkpoints written before are untouched.
    """
    try:
        with atomic_folder(folder) as temporary:
            _save(model, temporary / MODEL)
            _save(optimizer, temporary / OPTIMIZER)
            files = {name: _sha256(temporary / name) for name in (MODEL, OPTIMIZER)}
            content = {"state": state, "files": files, "sha256": _digest(state, files)}
            (temporary / STATE).write_text(json.dumps(content, indent=1, allow_nan=False), encoding="utf-8")
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        others = find_checkpoints(folder.parent)
        kept = f"the last good one is {others[-1].name}" if others else "there is no earlier one"
        raise UserError(
            f"cannot write the checkpoint {folder} ({reason}); {kept}; free space and start again"
        ) from error


def read_state(folder: Path) -> dict:
    """The state of a checkpoint, without a look at its tensors.

    Raises:
        UserError: state.json is missing or not as it was written.
    """
    return _read(folder)["state"]


def read_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """The tensors of MODEL or OPTIMIZER in a checkpoint, checked against their sha256.

    Raises:
        UserError: the file is missing or not as it was written.
    """
    verify_checkpoint(folder, (name,))
    return load_file(folder / name)


def verify_checkpoint(folder: Path, names: Sequence[str] = (MODEL, OPTIMIZER)) -> None:
    """Compares files with their sha256.

    Raises:
        UserError: the checkpoint is incomplete or damaged.
    """
    files = _read(folder)["files"]
    for name in names:
        try:
            intact = _sha256(folder / name) == files[name]
        except OSError as error:
            raise UserError(f"checkpoint {folder}: {name}: {error.strerror}") from None
        if not intact:
            raise UserError(f"checkpoint {folder}: {name} is damaged (its sha256 is not the one it was written with)")


def find_checkpoints(root: Path) -> list[Path]:
    """All checkpoint folders, oldest first, good or not; half-written ones are hidden and never among them."""
    if not root.is_dir():
        return []
    found = [path for path in root.iterdir() if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def newest_checkpoint(root: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that is intact; damaged ones are named through `say` and passed over.

    Raises:
        UserError: there are checkpoints, but none is intact.
    """
    folders = find_checkpoints(root)
    for folder in reversed(folders):
        try:
            verify_checkpoint(folder)
            return folder
        except UserError as error:
            say(f"passed over: {error}")
    if folders:
        raise UserError(
            f"none of the {len(folders)} checkpoints in {root} is intact; remove the folder to start afresh"
        )
    return None


def choose_milestones(root: Path, which: Literal["last", "lowest", "highest"], count: int) -> list[Path]:
    """The last `count` milestones, or those of the lowest or highest `valid`; in order of their steps."""
    states = {folder: state for folder in find_checkpoints(root) if (state := _state_or_none(folder))}
    folders = [folder for folder, state in states.items() if state["milestone"]]
    if which != "last":
        sign = -1 if which == "highest" else 1
        ranks = {f: sign * valid for f in folders if (valid := states[f]["valid"]) is not None}
        folders = sorted(sorted(ranks, key=lambda f: ranks[f])[:count], key=folders.index)
    return folders[max(0, len(folders) - count) :]


def prune_checkpoints(root: Path, newest: int, keep: Sequence[Path]) -> list[Path]:
    """Removes all checkpoints but the `newest` intact-looking ones and those in `keep`. Returns what it removed.

    Folders without a state go as well: they are what removals that were cut short have left.
    """
    readable = [folder for folder in find_checkpoints(root) if _state_or_none(folder)]
    removed = [folder for folder in readable[: max(0, len(readable) - newest)] if folder not in keep]
    for folder in find_checkpoints(root):
        if not (folder / STATE).exists():
            shutil.rmtree(folder)
    for folder in removed:
        # The state goes first: a removal cut short leaves a folder that is seen to be incomplete.
        (folder / STATE).unlink()
        shutil.rmtree(folder)
    return removed


def average_checkpoints(folders: Sequence[Path]) -> dict[str, Tensor]:
    """The mean of the weights of several checkpoints, summed in float64, in each weight's own type.

    Integer tensors (counters) are those of the last checkpoint.

    Raises:
        UserError: a checkpoint is damaged, or they are not of one model.
    """
    assert folders
    sums: dict[str, Tensor] = {}
    last: dict[str, Tensor] = {}
    for folder in folders:
        tensors = read_tensors(folder, MODEL)
        if last and {n: t.shape for n, t in tensors.items()} != {n: t.shape for n, t in last.items()}:
            raise UserError(f"checkpoints {folders[0]} and {folder} hold different weights; they cannot be averaged")
        for name, tensor in tensors.items():
            if tensor.is_floating_point():
                sums[name] = tensor.double() if name not in sums else sums[name].add_(tensor)
        last = tensors
    return {n: (sums[n] / len(folders)).to(t.dtype) if n in sums else t for n, t in last.items()}


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)


def _read(folder: Path) -> dict:
    try:
        content = parse_json((folder / STATE).read_bytes())
        if content["sha256"] != _digest(content["state"], content["files"]):
            raise ValueError("sha256")
    except OSError as error:
        raise UserError(f"checkpoint {folder}: {STATE}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"checkpoint {folder}: {STATE} is damaged") from None
    return content


def _state_or_none(folder: Path) -> dict | None:
    try:
        return read_state(folder)
    except UserError:
        return None


def _digest(state: dict, files: dict) -> str:
    return hashlib.sha256(json.dumps([state, files], sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()

"""Reads the files of a checkpoint of `transformers`: from a folder, or from the Hugging Face hub.

Only safetensors and JSON are read, and no code that comes with a checkpoint is run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from moe_asr.errors import UserError
from moe_asr.strict_json import parse_json

CONFIG = "config.json"
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def checkpoint_folder(source: str, files: Sequence[str] = ()) -> Path:
    """The folder of a checkpoint, with its `config.json` and as many of `files` as it has, without its weights.

    Args:
        source: folder, or name on the Hugging Face hub; what is not in the hub's cache is fetched

    Raises:
        UserError: there is no such checkpoint, or it cannot be fetched
    """
    if Path(source).is_dir():
        return Path(source)
    if not _HUB_NAME.fullmatch(source):
        raise UserError(f"there is no folder {source}, and it is no name on the Hugging Face hub either")
    return _fetch(source, (CONFIG, _INDEX, *files))


def read_json(path: Path, source: str) -> dict:
    """Contents of one of the files of the checkpoint `source`.

    Raises:
        UserError: the file is missing, or holds something else
    """
    if not path.is_file():
        raise UserError(f"{source} is not a checkpoint of transformers: it has no {path.name}")
    try:
        content = parse_json(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): fetch it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged (it holds no names): fetch it again")
    return content


def read_weights(source: str, folder: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint under its own names, in its own precision, from one file or from several.

    Args:
        folder: what `checkpoint_folder` gave for `source`

    Raises:
        UserError: there are none, they are damaged, quantised, or pickled only
    """
    files = _weight_files(folder, source)
    if not all((folder / name).is_file() for name in files):
        folder = checkpoint_folder(source, files)
    state: dict[str, Tensor] = {}
    for name in files:
        if not (folder / name).is_file():
            pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
            why = f"; {pickled[0]} is not read, since loading pickled weights can run code" if pickled else ""
            raise UserError(f"{source} has no {name}{why}: take a checkpoint with weights as safetensors")
        try:
            state |= load_file(folder / name)
        except SafetensorError as error:
            raise UserError(f"{folder / name} is damaged ({error}): fetch it again") from None
    whole = [name for name, tensor in state.items() if not tensor.is_floating_point()]
    if whole:
        raise UserError(f"{source}: {whole[0]} is {state[whole[0]].dtype}; quantised checkpoints are not taken over")
    return state


def _fetch(name: str, files: Sequence[str]) -> Path:
    """The folder of a checkpoint in the hub's cache, with as many of `files` as it has."""
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError:
        raise UserError(f"fetching {name} needs huggingface_hub: pip install 'moe_asr[whisper]'") from None
    try:
        return Path(snapshot_download(name, allow_patterns=list(files)))
    except Exception as error:  # of the hub, of HTTP, of the network: the library does not say which there are
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"cannot fetch {name} from the Hugging Face hub ({reason}); if there is no network here, run `hf download "
            f"{name}` elsewhere, and give a copy of the folder that it prints, or set HF_HOME to a copy of its cache"
        ) from error


def _weight_files(folder: Path, source: str) -> list[str]:
    """Names of the files that the weights are in."""
    if not (folder / _INDEX).is_file():
        return [_WEIGHTS]
    names = sorted(set(read_json(folder / _INDEX, source).get("weight_map", {}).values()))
    if not names or any(Path(name).name != name for name in names):
        raise UserError(f"{folder / _INDEX} is damaged (it names no files beside it): fetch it again")
    return names

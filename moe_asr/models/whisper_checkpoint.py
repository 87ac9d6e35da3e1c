"""Reads a Whisper checkpoint of `transformers`: from a folder, or from the Hugging Face hub.

Only safetensors and JSON are read, and no code that comes with a checkpoint is run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from moe_asr.data.whisper_tokens import TOKENIZER
from moe_asr.errors import UserError

EMBEDDING = "decoder.embed_tokens.weight"
_OUTPUT = "proj_out.weight"
_CONFIG, _GENERATION = "config.json", "generation_config.json"
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_TOKENIZER_FILES = (TOKENIZER, "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Checkpoint:
    """A Whisper checkpoint.

    Args:
        source: as the user named it
        folder: where its files are
        config: what `config.json` says
        generation: what `generation_config.json` says; `config` where there is none
        state: its weights in float32, named as in `moe_asr.models.whisper.Whisper`
    """

    source: str
    folder: Path
    config: dict
    generation: dict
    state: dict[str, Tensor]


def read_checkpoint(source: str) -> Checkpoint:
    """Reads a checkpoint.

    Args:
        source: folder, or name on the Hugging Face hub; what is not in the hub's cache is fetched

    Raises:
        UserError: there is no such checkpoint, it is damaged, of another kind, or has pickled weights only
    """
    local = Path(source).is_dir()
    if not local and not _HUB_NAME.fullmatch(source):
        raise UserError(f"there is no folder {source}, and it is no name on the Hugging Face hub either")
    settings = (_CONFIG, _GENERATION, _INDEX, *_TOKENIZER_FILES)
    folder = Path(source) if local else _fetch(source, settings)
    config = _read_json(folder / _CONFIG, source)
    if config.get("model_type") != "whisper":
        raise UserError(f"{source} is no Whisper checkpoint: its model_type is {config.get('model_type')}")
    files = _weight_files(folder, source)
    if not local and not all((folder / name).is_file() for name in files):
        folder = _fetch(source, (*settings, *files))
    generation = _read_json(folder / _GENERATION, source) if (folder / _GENERATION).is_file() else config
    return Checkpoint(source, folder, config, generation, _renamed(_read_weights(folder, files, source), source))


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


def _read_json(path: Path, source: str) -> dict:
    if not path.is_file():
        raise UserError(f"{source} is not a checkpoint of transformers: it has no {path.name}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): fetch it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged (it holds no names): fetch it again")
    return content


def _weight_files(folder: Path, source: str) -> list[str]:
    """Names of the files that the weights are in."""
    if not (folder / _INDEX).is_file():
        return [_WEIGHTS]
    names = sorted(set(_read_json(folder / _INDEX, source).get("weight_map", {}).values()))
    if not names or any(Path(name).name != name for name in names):
        raise UserError(f"{folder / _INDEX} is damaged (it names no files beside it): fetch it again")
    return names


def _read_weights(folder: Path, files: Sequence[str], source: str) -> dict[str, Tensor]:
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
    return state


def _renamed(state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """The weights under our names; the output layer, which is the token embedding, goes."""
    whole = [name for name, tensor in state.items() if not tensor.is_floating_point()]
    if whole:
        raise UserError(f"{source}: {whole[0]} is {state[whole[0]].dtype}; quantised checkpoints are not taken over")
    state = {name.removeprefix("model."): tensor.to(torch.float32) for name, tensor in state.items()}
    output = state.pop(_OUTPUT, None)
    if output is not None and not torch.equal(state.setdefault(EMBEDDING, output), output):
        raise UserError(f"{source}: {_OUTPUT} differs from {EMBEDDING}; Whisper has one embedding for both")
    return state

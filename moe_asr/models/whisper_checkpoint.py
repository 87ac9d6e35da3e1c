"""Reads a Whisper checkpoint of `transformers`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from moe_asr.data.json_tokens import TOKENIZER
from moe_asr.errors import UserError
from moe_asr.models.checkpoint_files import CONFIG, checkpoint_folder, read_json, read_weights

EMBEDDING = "decoder.embed_tokens.weight"
_OUTPUT = "proj_out.weight"
_GENERATION = "generation_config.json"
_SETTINGS = (_GENERATION, TOKENIZER, "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json")


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
    folder = checkpoint_folder(source, _SETTINGS)
    config = read_json(folder / CONFIG, source)
    if config.get("model_type") != "whisper":
        raise UserError(f"{source} is no Whisper checkpoint: its model_type is {config.get('model_type')}")
    generation = read_json(folder / _GENERATION, source) if (folder / _GENERATION).is_file() else config
    return Checkpoint(source, folder, config, generation, _renamed(read_weights(source, folder), source))


def _renamed(state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """The weights under our names; the output layer, which is the token embedding, goes."""
    state = {name.removeprefix("model."): tensor.to(torch.float32) for name, tensor in state.items()}
    output = state.pop(_OUTPUT, None)
    if output is not None and not torch.equal(state.setdefault(EMBEDDING, output), output):
        raise UserError(f"{source}: {_OUTPUT} differs from {EMBEDDING}; Whisper has one embedding for both")
    return state

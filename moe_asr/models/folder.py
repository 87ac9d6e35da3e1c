"""A model on disk: a folder with everything needed to use it.

`model.safetensors` holds the weights, `config.yaml` what the model is and how its input is made, `tokens/` the
token set of a recogniser. Parts that are never fine-tuned lie in `frozen.safetensors`, one file for all models that
have them in common: a hard link, where the file system can.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from moe_asr.config import load_config, save_config
from moe_asr.data.features import FeatureConfig
from moe_asr.data.tokens import TokenSet, load_tokens
from moe_asr.errors import UserError
from moe_asr.files import atomic_folder
from moe_asr.models.build import KINDS, ModelConfig, build_model, complete_config, model_kind
from moe_asr.models.interface import Model, Recogniser
from moe_asr.quant import QuantConfig, quantise

_WEIGHTS, _FROZEN, _CONFIG, _TOKENS = "model.safetensors", "frozen.safetensors", "config.yaml", "tokens"


@dataclass(frozen=True)
class FolderConfig:
    """What `config.yaml` says.

    Args:
        model: what the model is.
        features: its input.
        normaliser: name of the text normaliser its transcripts went through.
        finetuned: whether all its weights were trained on from those of another model.
        quantisation: which of its weights are in 4 bits; unset for none.
        untrained: whether some weights that it cannot do without are still random.
    """

    model: ModelConfig
    features: FeatureConfig = field(default_factory=FeatureConfig)
    normaliser: str = "none"
    finetuned: bool = False
    quantisation: QuantConfig | None = None
    untrained: bool = False


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode, with what belongs to it; `tokens` is None for a classifier."""

    model: Model
    config: FolderConfig
    tokens: TokenSet | None


def save_model(
    folder: str | Path,
    model: Model,
    config: FolderConfig,
    tokens: TokenSet | None = None,
    frozen_from: BinaryIO | None = None,
) -> None:
    """Writes a model folder, atomically; an old one is replaced.

    Args:
        tokens: the token set, given for a recogniser and only for one.
        frozen_from: what `open_frozen` gave for a model of the same `frozen_parts`, which are then not written again.

    Raises:
        UserError: the model is not the one that `config` describes, for instance because it has experts attached.
    """
    assert isinstance(model, Recogniser) == (tokens is not None), "a token set belongs to a recogniser"
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    check_state(state, _empty_model(config, tokens), "this model")
    frozen = {name: state.pop(name) for name in list(state) if name.startswith(tuple(model.frozen_parts))}
    with atomic_folder(folder) as new:
        save_file(state, new / _WEIGHTS)
        if frozen and frozen_from is not None:
            _link(frozen_from, new / _FROZEN)
        elif frozen:
            save_file(frozen, new / _FROZEN)
        save_config(config, new / _CONFIG)
        if tokens is not None:
            tokens.save(new / _TOKENS)


def load_model(folder: str | Path, device: str | torch.device = "cpu") -> LoadedModel:
    """Reads a model folder: exactly what its configuration describes, or nothing.

    Raises:
        UserError: the folder or a file in it is missing or damaged, or weights are missing, unexpected or misshapen.
    """
    folder, config = Path(folder), read_config(folder)
    kind = model_kind(config.model)
    tokens = load_tokens(folder / _TOKENS, kind == "whisper") if issubclass(KINDS[kind], Recogniser) else None
    model = _empty_model(config, tokens)
    state = load_weights(folder, device=device)
    check_state(state, model, str(folder / _WEIGHTS))
    model.load_state_dict(state, assign=True)
    return LoadedModel(model.eval(), config, tokens)


def read_config(folder: str | Path) -> FolderConfig:
    """What a model folder says of itself.

    Raises:
        UserError: the folder or a file in it is missing, or its configuration is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no model folder at {folder}")
    for name in (_CONFIG, _WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is not a model folder: it has no {name}")
    return load_config(FolderConfig, folder / _CONFIG)


def load_weights(folder: str | Path, part: str = "", device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """Weights whose names begin with `part`, under the rest of their names; others are not read.

    Raises:
        UserError: a file is damaged.
    """
    state = {}
    for path in _weight_files(Path(folder)):
        try:
            with safe_open(path, "pt", device=str(device)) as file:
                names = [name for name in file.keys() if name.startswith(part)]
                state |= {name[len(part) :]: file.get_tensor(name) for name in names}
        except SafetensorError as error:
            raise UserError(f"{path} is damaged ({error}): copy or train the model again") from None
    return state


def open_frozen(folder: str | Path | None) -> AbstractContextManager[BinaryIO | None]:
    """The file of a model's frozen parts, if it has one: open, it stays what it is if the folder is replaced."""
    path = None if folder is None else Path(folder) / _FROZEN
    return nullcontext() if path is None or not path.is_file() else open(path, "rb")


def tensor_bytes(folder: str | Path) -> dict[str, int]:
    """Bytes that each tensor takes in a model folder, as the headers of its files say."""
    spans = {}
    for path in _weight_files(Path(folder)):
        with open(path, "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        spans |= {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
    return {name: end - start for name, (start, end) in spans.items()}


def _weight_files(folder: Path) -> list[Path]:
    return [path for path in (folder / _WEIGHTS, folder / _FROZEN) if path.is_file()]


def _link(source: BinaryIO, target: Path) -> None:
    """The open file under another name; a copy of it in another file system, or if its own name is no longer its."""
    try:
        os.link(source.name, target)
        if os.path.samestat(os.fstat(source.fileno()), os.stat(target)):
            return
        os.unlink(target)
    except OSError:
        pass
    source.seek(0)
    with open(target, "wb") as copy:
        shutil.copyfileobj(source, copy)


def _empty_model(config: FolderConfig, tokens: TokenSet | None) -> Model:
    """The model without memory for its weights, which are about to be given."""
    complete_config(config.model, config.features.num_mels, tokens.size if tokens else 0)
    with torch.device("meta"):
        model = build_model(config.model)
        if config.quantisation is not None:
            quantise(model, config.quantisation)
        return model


def check_state(state: dict[str, Tensor], model: nn.Module, source: str) -> None:
    """Compares weights with those that a model expects; `source` is named where they differ.

    Raises:
        UserError: weights are missing, unexpected, misshapen, or floating-point where they should not be.
    """
    expected = model.state_dict()
    for kind, names in (
        ("lacks", expected.keys() - state.keys()),
        ("has an unexpected", state.keys() - expected.keys()),
    ):
        if names:
            rest = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise UserError(f"{source} does not fit its configuration: it {kind} {min(names)}{rest}")
    for name, tensor in state.items():
        if tensor.is_floating_point() != expected[name].is_floating_point():
            raise UserError(
                f"{source} does not fit its configuration: {name} is {tensor.dtype}, expected {expected[name].dtype}"
            )
        if tensor.shape != expected[name].shape:
            raise UserError(
                f"{source} does not fit its configuration: {name} is {tuple(tensor.shape)}, "
                f"expected {tuple(expected[name].shape)}"
            )

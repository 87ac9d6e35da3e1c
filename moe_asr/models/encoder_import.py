"""Takes the speech encoder out of a model folder, or out of a checkpoint of `transformers`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from moe_asr.data.features import FeatureConfig
from moe_asr.errors import UserError
from moe_asr.models.build import model_kind
from moe_asr.models.checkpoint_files import CONFIG, checkpoint_folder, read_json
from moe_asr.models.encoders import EncoderConfig
from moe_asr.models.folder import load_weights, read_config, tensor_bytes
from moe_asr.models.pretrained_checkpoint import read_pretrained_encoder
from moe_asr.models.pretrained_encoder import ENCODER_TYPES
from moe_asr.models.whisper_checkpoint import read_checkpoint
from moe_asr.models.whisper_import import whisper_config

_OURS = "config.yaml"
_FOLDER_KINDS = ("whisper", "conformer_ctc", "conformer_aed", "speech_llm")


@dataclass(frozen=True)
class ReadEncoder:
    """A speech encoder.

    Args:
        config: what it is
        features: its input
        state: its weights in float32, without the name of the encoder
        left_out: weights beside it that were not taken
    """

    config: EncoderConfig
    features: FeatureConfig
    state: dict[str, Tensor]
    left_out: int = 0


def read_encoder(source: str, layer: int = 0) -> ReadEncoder:
    """Reads an encoder: every weight of it, or nothing.

    Args:
        source: model folder, or folder or hub name of a checkpoint of Whisper or one that takes samples
        layer: see `PretrainedEncoderConfig`

    Raises:
        UserError: there is no encoder of a known kind, `layer` does not suit it, or see what reads each kind
    """
    if Path(source, _OURS).is_file():
        kind, encoder = "model folder", _of_folder(source)
    else:
        kind = _checkpoint_kind(source)
        if kind != "whisper":
            config, state, features = read_pretrained_encoder(source, layer)
            return ReadEncoder(EncoderConfig(pretrained=config), features, state)
        encoder = _of_whisper(source)
    if layer:
        raise UserError(f"layer is for wav2vec 2.0, HuBERT and data2vec, and {source} is a {kind}: leave layer out")
    return encoder


def put_encoder(source: ReadEncoder, encoder: nn.Module, features: FeatureConfig, name: str) -> None:
    """Has an encoder start with the weights that were read from `name`.

    Raises:
        UserError: it is of another size, or `features`, which it is to take, are others
    """
    if source.features != features:
        raise UserError(f"init_encoder: {name} was trained on other features; set features to those in its config.yaml")
    if {k: v.shape for k, v in encoder.state_dict().items()} != {k: v.shape for k, v in source.state.items()}:
        raise UserError(f"init_encoder: the encoder of {name} has another size; see its config.yaml")
    encoder.load_state_dict(source.state)


def _of_folder(source: str) -> ReadEncoder:
    folder = read_config(source)
    kind = model_kind(folder.model)
    if kind not in _FOLDER_KINDS:
        raise UserError(f"{source} is a {kind}, and no recogniser: give one of {', '.join(_FOLDER_KINDS)}")
    if folder.quantisation is not None:
        raise UserError(f"{source} is quantised: give the model that it was made from, and see bin/quantise")
    part = getattr(folder.model, kind)
    if kind == "speech_llm":
        config = part.encoder
    else:
        config = EncoderConfig(**{"whisper" if kind == "whisper" else "conformer": part.encoder})
    state = load_weights(source, "encoder.")
    return ReadEncoder(config, folder.features, state, len(tensor_bytes(source)) - len(state))


def _of_whisper(source: str) -> ReadEncoder:
    checkpoint = read_checkpoint(source)
    config = whisper_config(checkpoint).encoder
    state = {
        name.removeprefix("encoder."): tensor
        for name, tensor in checkpoint.state.items()
        if name.startswith("encoder.")
    }
    features = FeatureConfig.whisper(config.mels)
    return ReadEncoder(EncoderConfig(whisper=config), features, state, len(checkpoint.state) - len(state))


def _checkpoint_kind(source: str) -> str:
    folder = checkpoint_folder(source)
    if Path(source).is_dir() and not (folder / CONFIG).is_file():
        raise UserError(
            f"{source} holds no encoder: it is neither a model folder (no {_OURS}) nor a checkpoint of "
            f"transformers (no {CONFIG})"
        )
    kind = read_json(folder / CONFIG, source).get("model_type")
    if kind not in ("whisper", *ENCODER_TYPES):
        known = ", ".join(("whisper", *ENCODER_TYPES))
        raise UserError(f"{source} holds no speech encoder: its model_type is {kind}, known are {known}")
    return kind

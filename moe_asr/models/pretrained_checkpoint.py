"""Reads a checkpoint of wav2vec 2.0, HuBERT or data2vec-audio of `transformers`, see `checkpoint_files`."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_asr.data.features import FeatureConfig
from moe_asr.errors import UserError
from moe_asr.models.checkpoint_files import CONFIG, checkpoint_folder, read_json, read_weights
from moe_asr.models.folder import check_state
from moe_asr.models.pretrained_encoder import PretrainedEncoder, PretrainedEncoderConfig, transformers_model

_INPUT = "preprocessor_config.json"
_PREFIXES = {"wav2vec2": "wav2vec2.", "hubert": "hubert.", "data2vec-audio": "data2vec_audio."}
_LEFT_OUT = ("masked_spec_embed", "lm_head.", "classifier.", "projector.", "quantizer.", "project_q.", "project_hid.")
_NEW_NAMES = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
_OF_NO_USE = ("architectures", "auto_map", "_name_or_path", "transformers_version", "torch_dtype", "dtype")


def read_pretrained_encoder(
    source: str, layer: int = 0
) -> tuple[PretrainedEncoderConfig, dict[str, Tensor], FeatureConfig]:
    """Reads a checkpoint: every weight of its encoder, or nothing. Outputs for another task are left out.

    Args:
        source: folder, or name on the Hugging Face hub; what is not in the hub's cache is fetched
        layer: see `PretrainedEncoderConfig`

    Returns:
        what the encoder is, its weights in float32 under the names of `PretrainedEncoder`, and its features

    Raises:
        UserError: there is no such checkpoint, it is damaged, of another kind, or has pickled weights only; weights of
            the encoder are missing, unexpected or misshapen
    """
    folder = checkpoint_folder(source, (_INPUT,))
    found = read_json(folder / CONFIG, source)
    config = PretrainedEncoderConfig({k: v for k, v in found.items() if k not in _OF_NO_USE}, layer)
    features = _features(read_json(folder / _INPUT, source), source)
    with torch.device("meta"):
        model = transformers_model(config)
    state = _renamed(read_weights(source, folder), _PREFIXES[found["model_type"]])
    check_state(state, model, source)
    model.load_state_dict(state, assign=True)
    return config, PretrainedEncoder(config, model).state_dict(), features


def _features(found: dict, source: str) -> FeatureConfig:
    try:
        return FeatureConfig.waveform(found["sampling_rate"], "mean_var" if found["do_normalize"] else "none")
    except KeyError as error:
        raise UserError(f"{source}: {_INPUT} lacks {error.args[0]}; fetch it again") from None


def _renamed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights of the encoder in float32, under the names of its model in transformers today."""
    renamed = {}
    for name, tensor in state.items():
        name = name.removeprefix(prefix)
        if not name.startswith(_LEFT_OUT):
            module, _, part = name.rpartition(".")
            renamed[f"{module}.{_NEW_NAMES.get(part, part)}"] = tensor.to(torch.float32)
    return renamed

"""Speech encoders of `transformers` that take samples: wav2vec 2.0, HuBERT and data2vec-audio.

Their layers are those of transformers. What runs them is ours, since theirs lets padding into short utterances: into
the normalisation over time of the first convolution (`feat_extract_norm: group`), and into the second and further ones
of data2vec's convolutions for positions. Attention dropout and all other randomness is left out.

Shape letters: N utterances, S samples, T frames, C channels of the convolutions, D encoder width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from moe_asr.errors import UserError
from moe_asr.models.speech_encoder import SpeechEncoder
from moe_asr.models.time_conv import padding_mask, real_mask

ENCODER_TYPES = ("wav2vec2", "hubert", "data2vec-audio")
"""By the `model_type` of transformers. WavLM is none: its attention uses weights past the layers that hold them, and
experts on these would do nothing."""

_NO_RANDOMNESS = dict.fromkeys(
    (
        "hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout", "layerdrop",
        "mask_time_prob", "mask_feature_prob",
    ),
    0.0,
)  # fmt: skip
_UNSUPPORTED = {
    "add_adapter": "convolutions behind the layers",
    "conv_pos_batch_norm": "batch normalisation of positions",
}


@dataclass(frozen=True)
class PretrainedEncoderConfig:
    """What the encoder is.

    Args:
        config: its configuration, as `transformers` writes it.
        layer: number of layers to use; the output of the last of them is that of the encoder. 0 uses all, and the
            normalisation behind them where the encoder has one.
    """

    config: dict[str, Any]
    layer: int = 0

    def __post_init__(self):
        kind = self.config.get("model_type")
        if kind not in ENCODER_TYPES:
            raise UserError(f"encoder: no pretrained encoder of type {kind}, only {', '.join(ENCODER_TYPES)}")
        for name, what in _UNSUPPORTED.items():
            if self.config.get(name):
                raise UserError(f"encoder: {name} ({what}) is not supported; take another checkpoint")


class PretrainedEncoder(SpeechEncoder):
    """convolutions over samples, linear projection, + positions by convolution, Transformer layers.

    Post-norm: norm, layers; pre-norm (`do_stable_layer_norm`): layers, norm. An utterance gives the same states alone
    and in any batch. One that is too short for a frame has none.

    Args:
        model: that of transformers to take the layers from, see `transformers_model`; by default a new one
    """

    def __init__(self, config: PretrainedEncoderConfig, model: nn.Module | None = None) -> None:
        super().__init__()
        model = transformers_model(config) if model is None else model
        found, encoder, layers = model.config, model.encoder, len(model.encoder.layers)
        if not 0 <= config.layer <= layers:
            raise UserError(f"encoder: layer {config.layer} is none of its layers 1 to {layers}; 0 uses all of them")
        self.width = found.hidden_size
        self.kernels = tuple(zip(found.conv_kernel, found.conv_stride))
        self.norm_over_time = getattr(found, "feat_extract_norm", "layer") == "group"
        self.norm_first = not getattr(found, "do_stable_layer_norm", False)
        self.feature_extractor = model.feature_extractor.conv_layers
        self.feature_projection = model.feature_projection
        self.pos_conv_embed = _plain(encoder.pos_conv_embed)
        self.layers = encoder.layers[: config.layer or None]
        if self.norm_first or not config.layer:
            self.layer_norm = encoder.layer_norm

    def forward(self, features_NS1: Tensor, lengths_N: Tensor) -> tuple[Tensor, Tensor]:
        """Samples as features of width 1 -> (states_NTD, frame counts); states of padding frames are zero."""
        x_NTD = self.feature_projection(self._convolutions(features_NS1, lengths_N))
        if isinstance(x_NTD, tuple):  # data2vec's gives its input too
            x_NTD = x_NTD[0]
        lengths_N, T = self.output_lengths(lengths_N), x_NTD.shape[1]
        padding_NT1 = padding_mask(lengths_N, T)
        x_NTD = x_NTD.masked_fill(padding_NT1, 0.0)
        x_NTD = x_NTD + self._positions(x_NTD, padding_NT1)
        if self.norm_first:
            x_NTD = self.layer_norm(x_NTD)
        mask_N11T = None if int(lengths_N.min()) == T else real_mask(lengths_N, T)[:, None, None]
        for layer in self.layers:
            x_NTD = self.run_layer(layer, x_NTD, mask_N11T)
            x_NTD = x_NTD[0] if isinstance(x_NTD, tuple) else x_NTD  # as those of transformers 5.0 are
        if not self.norm_first and hasattr(self, "layer_norm"):
            x_NTD = self.layer_norm(x_NTD)
        return x_NTD.masked_fill(padding_NT1, 0.0), lengths_N

    def output_lengths(self, lengths_N: Tensor) -> Tensor:
        """Samples -> frames: floor((length - kernel) / stride) + 1 for one convolution after another, or 0."""
        for kernel, stride in self.kernels:
            lengths_N = (lengths_N - kernel).div(stride, rounding_mode="floor") + 1
        return lengths_N.clamp(min=0)

    def _convolutions(self, features_NS1: Tensor, lengths_N: Tensor) -> Tensor:
        """The convolutional front end, of at least one frame: x_NTC. Its real frames see real samples only."""
        x_NCT = features_NS1.transpose(1, 2)
        x_NCT = F.pad(x_NCT, (0, max(0, self._samples_of_a_frame() - x_NCT.shape[2])))
        rest = list(self.feature_extractor)
        if self.norm_over_time:
            x_NCT = self._one_by_one(rest.pop(0), x_NCT, lengths_N)
        for layer in rest:
            x_NCT = layer(x_NCT)
        return x_NCT.transpose(1, 2)

    def _one_by_one(self, layer: nn.Module, x_NCT: Tensor, lengths_N: Tensor) -> Tensor:
        """A layer that takes means over time: each utterance goes through it without its padding."""
        least, (kernel, stride) = self._samples_of_a_frame(), self.kernels[0]
        samples, frames = lengths_N.clamp(min=least).tolist(), (x_NCT.shape[2] - kernel) // stride + 1
        rows = [layer(x_CT[None, :, :length]) for x_CT, length in zip(x_NCT, samples)]
        return torch.cat([F.pad(row_1CT, (0, frames - row_1CT.shape[2])) for row_1CT in rows])

    def _positions(self, x_NTD: Tensor, padding_NT1: Tensor) -> Tensor:
        """Convolutions over time, each of which sees zeros beyond the end of every utterance."""
        if not isinstance(self.pos_conv_embed, nn.ModuleList):
            return self.pos_conv_embed(x_NTD)
        x_NDT, padding_N1T = x_NTD.transpose(1, 2), padding_NT1.transpose(1, 2)
        for layer in self.pos_conv_embed:
            x_NDT = layer(x_NDT.masked_fill(padding_N1T, 0.0))
        return x_NDT.transpose(1, 2)

    def _samples_of_a_frame(self) -> int:
        samples = 1
        for kernel, stride in reversed(self.kernels):
            samples = (samples - 1) * stride + kernel
        return samples


def transformers_model(config: PretrainedEncoderConfig) -> nn.Module:
    """The encoder as transformers has it, without dropout and masks; also on the device `meta`.

    Raises:
        UserError: transformers is missing, or does not take this configuration
    """
    try:
        from huggingface_hub.errors import StrictDataclassError
        from transformers import AutoConfig, AutoModel
    except ImportError:
        raise UserError("a pretrained encoder needs transformers: pip install 'moe_asr[whisper]'") from None
    settings = {**config.config, **_NO_RANDOMNESS, "gradient_checkpointing": False}
    try:
        found = AutoConfig.for_model(**settings)
        return AutoModel.from_config(found, dtype=torch.float32, attn_implementation="sdpa", trust_remote_code=False)
    except (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"encoder: transformers cannot make this pretrained encoder: {reason}") from None


def _plain(positions: nn.Module) -> nn.Module:
    """Data2vec's convolutions one by one; the one of the others with weight g v / |v| stored as one tensor."""
    if hasattr(positions, "layers"):
        return positions.layers
    parametrize.remove_parametrizations(positions.conv, "weight")
    return positions

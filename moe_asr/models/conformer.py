"""Conformer encoder (Gulati et al. 2020), independent of padding and of batch-mates.

Shape letters: N utterances, T frames, F mel bins, D model width, H attention heads, K width of a head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_asr.errors import UserError
from moe_asr.models.dropout import Dropout
from moe_asr.models.speech_encoder import SpeechEncoder
from moe_asr.models.time_conv import TimeConv, padding_mask

ENCODER_ATTENTION = r"layers\.\d+\.attention\.(q|k|v|out)_proj"
ADAPTER_TARGETS = (
    ENCODER_ATTENTION,
    r"layers\.\d+\.ffn[12]\.(up|down)",
    r"layers\.\d+\.conv\.pointwise_(in|out)",
)
"""All linear layers of a `ConformerEncoder`, as regular expressions for their whole names."""


@dataclass(frozen=True)
class ConformerConfig:
    """Size of a Conformer encoder.

    Args:
        mels: mel bins of the features.
        width: model width D.
        layers: number of Conformer layers.
        heads: attention heads; the width of a head, width / heads, must be even.
        ffn_multiplier: hidden width of the feed-forward modules in units of `width`.
        kernel: length of the depthwise convolution in frames, odd.
        dropout: dropout on the output of every module.
        subsampling: feature frames per encoder frame, a power of two.
    """

    mels: int = 80
    width: int = 144
    layers: int = 6
    heads: int = 4
    ffn_multiplier: int = 4
    kernel: int = 15
    dropout: float = 0.1
    subsampling: int = 4

    def __post_init__(self):
        for name in ("mels", "width", "layers", "heads", "ffn_multiplier", "kernel"):
            if getattr(self, name) < 1:
                raise UserError(f"conformer: {name} must be at least 1, not {getattr(self, name)}")
        if self.width % (2 * self.heads):
            raise UserError(
                f"conformer: width {self.width} over {self.heads} heads gives no even width of a head; "
                f"take a multiple of {2 * self.heads}"
            )
        if self.kernel % 2 == 0:
            raise UserError(f"conformer: kernel must be odd, not {self.kernel}")
        if self.subsampling < 2 or self.subsampling & (self.subsampling - 1):
            raise UserError(f"conformer: subsampling must be 2, 4, 8, ..., not {self.subsampling}")
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"conformer: dropout must be in [0, 1), not {self.dropout}")


class ConformerEncoder(SpeechEncoder):
    """Subsampling by strided convolutions, then macaron layers FFN/2, attention, convolution, FFN/2, LayerNorm.

    An utterance gives the same states alone and in any batch: attention sees no padding keys, every convolution sees
    zeros beyond the end, and all normalisation is per frame. All projections are plain `nn.Linear`.
    """

    def __init__(self, config: ConformerConfig):
        super().__init__()
        self.config, self.width = config, config.width
        self.subsampling = Subsampling(config)
        self.layers = nn.ModuleList(ConformerLayer(config) for _ in range(config.layers))

    def forward(self, features_NTF: Tensor, lengths_N: Tensor) -> tuple[Tensor, Tensor]:
        """features_NTF, frame counts -> (states_NTD, frame counts); states of padding frames are zero."""
        x_NTD, lengths_N = self.subsampling(features_NTF, lengths_N)
        padding_NT1 = padding_mask(lengths_N, x_NTD.size(1))
        keys_N11T = ~padding_NT1.view(x_NTD.size(0), 1, 1, -1)
        rotation_TK = rotation(x_NTD.size(1), self.config.width // self.config.heads, x_NTD.device)
        for layer in self.layers:
            x_NTD = self.run_layer(layer, x_NTD, padding_NT1, keys_N11T, rotation_TK)
        return x_NTD.masked_fill(padding_NT1, 0.0), lengths_N

    def output_lengths(self, lengths_N: Tensor) -> Tensor:
        """Feature frames -> encoder frames, ceil(length / subsampling)."""
        return self.subsampling.output_lengths(lengths_N)


class Subsampling(nn.Module):
    """Convolutions of kernel 3 and stride 2 over time, each halving the frame rate, then LayerNorm."""

    def __init__(self, config: ConformerConfig):
        super().__init__()
        widths = [config.mels] + [config.width] * int(math.log2(config.subsampling))
        self.convs = nn.ModuleList(TimeConv(i, o, kernel=3, stride=2) for i, o in pairwise(widths))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, x_NTF: Tensor, lengths_N: Tensor) -> tuple[Tensor, Tensor]:
        for conv in self.convs:
            x_NTF = F.silu(conv(x_NTF, padding_mask(lengths_N, x_NTF.size(1))))
            lengths_N = conv.output_lengths(lengths_N)
        return self.norm(x_NTF), lengths_N

    def output_lengths(self, lengths_N: Tensor) -> Tensor:
        for conv in self.convs:
            lengths_N = conv.output_lengths(lengths_N)
        return lengths_N


class ConformerLayer(nn.Module):
    """x += FFN1(x) / 2;  x += Attention(x);  x += Conv(x);  x += FFN2(x) / 2;  LayerNorm(x)."""

    def __init__(self, config: ConformerConfig):
        super().__init__()
        self.ffn1 = FeedForward(config)
        self.attention = Attention(config)
        self.conv = Convolution(config)
        self.ffn2 = FeedForward(config)
        self.norm = nn.LayerNorm(config.width)
        self.dropout = Dropout(config.dropout)

    def forward(self, x_NTD: Tensor, padding_NT1: Tensor, keys_N11T: Tensor, rotation_TK: Tensor) -> Tensor:
        x_NTD = x_NTD.add(self.dropout(self.ffn1(x_NTD)), alpha=0.5)
        x_NTD = x_NTD + self.dropout(self.attention(x_NTD, keys_N11T, rotation_TK))
        x_NTD = x_NTD + self.dropout(self.conv(x_NTD, padding_NT1))
        x_NTD = x_NTD.add(self.dropout(self.ffn2(x_NTD)), alpha=0.5)
        return self.norm(x_NTD)


class FeedForward(nn.Module):
    """down(SiLU(up(LayerNorm(x))))."""

    def __init__(self, config: ConformerConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.up = nn.Linear(config.width, config.ffn_multiplier * config.width)
        self.down = nn.Linear(config.ffn_multiplier * config.width, config.width)

    def forward(self, x_NTD: Tensor) -> Tensor:
        return self.down(F.silu(self.up(self.norm(x_NTD))))


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions (Su et al. 2021) on queries and keys."""

    def __init__(self, config: ConformerConfig):
        super().__init__()
        self.heads = config.heads
        self.norm = nn.LayerNorm(config.width)
        self.q_proj = nn.Linear(config.width, config.width)
        self.k_proj = nn.Linear(config.width, config.width)
        self.v_proj = nn.Linear(config.width, config.width)
        self.out_proj = nn.Linear(config.width, config.width)

    def forward(self, x_NTD: Tensor, keys_N11T: Tensor, rotation_TK: Tensor) -> Tensor:
        x_NTD = self.norm(x_NTD)
        q_NHTK = rotate(self._split(self.q_proj(x_NTD)), rotation_TK)
        k_NHTK = rotate(self._split(self.k_proj(x_NTD)), rotation_TK)
        v_NHTK = self._split(self.v_proj(x_NTD))
        y_NHTK = F.scaled_dot_product_attention(q_NHTK, k_NHTK, v_NHTK, attn_mask=keys_N11T)
        return self.out_proj(y_NHTK.transpose(1, 2).flatten(2))

    def _split(self, x_NTD: Tensor) -> Tensor:
        return x_NTD.unflatten(2, (self.heads, -1)).transpose(1, 2)


class Convolution(nn.Module):
    """pointwise_out(SiLU(LayerNorm(depthwise(GLU(pointwise_in(LayerNorm(x)))))))."""

    def __init__(self, config: ConformerConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.pointwise_in = nn.Linear(config.width, 2 * config.width)
        self.depthwise = TimeConv(config.width, config.width, config.kernel, groups=config.width)
        self.depthwise_norm = nn.LayerNorm(config.width)
        self.pointwise_out = nn.Linear(config.width, config.width)

    def forward(self, x_NTD: Tensor, padding_NT1: Tensor) -> Tensor:
        x_NTD = F.glu(self.pointwise_in(self.norm(x_NTD)), dim=-1)
        x_NTD = self.depthwise_norm(self.depthwise(x_NTD, padding_NT1))
        return self.pointwise_out(F.silu(x_NTD))


def rotation(num_frames: int, head_width: int, device: torch.device) -> Tensor:
    """Unit complex numbers exp(i t 10000^(-2j / K)) of shape [T, K / 2] for frame t and channel pair j."""
    channels = torch.arange(0, head_width, 2, device=device)
    angles_TK = torch.arange(num_frames, device=device).unsqueeze(1) * 10000.0 ** (-channels / head_width)
    return torch.polar(torch.ones_like(angles_TK), angles_TK)


def rotate(x_NHTK: Tensor, rotation_TK: Tensor) -> Tensor:
    """Turns channel pairs (2j, 2j + 1) of frame t by their angle; the dot product then depends on t - t' alone."""
    # As complex products this is 2.5 times as fast as with sine and cosine tables.
    exact = torch.promote_types(x_NHTK.dtype, torch.float32)
    pairs_NHTK = torch.view_as_complex(x_NHTK.to(exact).unflatten(3, (-1, 2)))
    return torch.view_as_real(pairs_NHTK * rotation_TK).flatten(3).to(x_NHTK.dtype)

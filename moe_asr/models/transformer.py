"""Pre-norm Transformer layers (Vaswani et al. 2017) with the parameter names of Whisper in `transformers`.

Shape letters: N utterances, T frames, D model width, U tokens, H attention heads, W width of a head.
"""

from __future__ import annotations

import math
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_asr.models.dropout import Dropout


class Attention(nn.Module):
    """out_proj(softmax(q k^T / sqrt W) v), heads side by side; a bias of the keys would cancel in the softmax."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(
        self, x_NTD: Tensor, memory_NSD: Optional[Tensor] = None, mask: Optional[Tensor] = None, causal: bool = False
    ) -> Tensor:
        """Attention of x to `memory`, by default to itself.

        Args:
            mask: True where a key may be seen, broadcast to (N, H, T, S)
            causal: a frame sees itself and the frames before it
        """
        q_NHTW = self.split(self.q_proj(x_NTD))
        k_NHSW, v_NHSW = self.keys_values(x_NTD if memory_NSD is None else memory_NSD)
        return self.attend(q_NHTW, k_NHSW, v_NHSW, mask, causal)

    def keys_values(self, x_NSD: Tensor) -> tuple[Tensor, Tensor]:
        return self.split(self.k_proj(x_NSD)), self.split(self.v_proj(x_NSD))

    def attend(
        self, q_NHTW: Tensor, k_NHSW: Tensor, v_NHSW: Tensor, mask: Optional[Tensor] = None, causal: bool = False
    ) -> Tensor:
        y_NHTW = F.scaled_dot_product_attention(q_NHTW, k_NHSW, v_NHSW, attn_mask=mask, is_causal=causal)
        return self.out_proj(y_NHTW.transpose(1, 2).flatten(2))

    def split(self, x_NTD: Tensor) -> Tensor:
        """(N, T, D) -> (N, H, T, W)."""
        return x_NTD.unflatten(2, (self.heads, -1)).transpose(1, 2)


class TransformerLayer(nn.Module):
    """x += self_attn(norm(x));  [x += encoder_attn(norm(x), memory);]  x += fc2(GELU(fc1(norm(x)))).

    Args:
        cross: whether the layer attends to a memory, as the layers of a decoder do
    """

    def __init__(self, width: int, heads: int, ffn: int, dropout: float, cross: bool) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        if cross:
            self.encoder_attn = Attention(width, heads)
            self.encoder_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, ffn)
        self.fc2 = nn.Linear(ffn, width)
        self.final_layer_norm = nn.LayerNorm(width)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x_NTD: Tensor,
        mask: Optional[Tensor] = None,
        memory_NSD: Optional[Tensor] = None,
        memory_mask: Optional[Tensor] = None,
    ) -> Tensor:
        """A decoder layer (`memory` given) is causal; an encoder layer sees the keys where `mask` is True."""
        causal = memory_NSD is not None
        x_NTD = x_NTD + self.dropout(self.self_attn(self.self_attn_layer_norm(x_NTD), mask=mask, causal=causal))
        if memory_NSD is not None:
            y_NTD = self.encoder_attn(self.encoder_attn_layer_norm(x_NTD), memory_NSD, memory_mask)
            x_NTD = x_NTD + self.dropout(y_NTD)
        return self.feed_forward(x_NTD)

    def feed_forward(self, x_NTD: Tensor) -> Tensor:
        return x_NTD + self.dropout(self.fc2(F.gelu(self.fc1(self.final_layer_norm(x_NTD)))))


class FixedPositions(nn.Module):
    """Sinusoids [sin | cos] of geometrically spaced periods from 2 pi to 10000 * 2 pi, which are not trained.

    Stored with the model as `weight`, as Whisper does.
    """

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        step = math.log(10000.0) / (width // 2 - 1)
        rates_W = torch.exp(-step * torch.arange(width // 2))
        angles = torch.arange(count)[:, None] * rates_W
        self.register_buffer("weight", torch.cat([angles.sin(), angles.cos()], dim=1))

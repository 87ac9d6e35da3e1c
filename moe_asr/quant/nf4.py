"""Numbers in 4 bits: NormalFloat4 of QLoRA (Dettmers et al. 2023), equal to bitsandbytes bit for bit.

A tensor is read row by row as W numbers in blocks of b: w = absmax * level[code]. Shapes: W numbers, S = ceil(W / b)
blocks, P = ceil(W / 2) bytes, whose high four bits come first.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

NF4_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""Quantiles of the normal distribution, exact zero among them, from QLoRA's Appendix E."""

_ABSMAX_BLOCK = 256
_SMALLEST = 1e-38  # what bitsandbytes divides by in place of zero


def quantise_nf4(weight: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Any weight -> packed codes_P (uint8) and absmax_S (float32); a number becomes the nearest of its block's levels.

    Args:
        block: numbers that share one absmax; even, so that no byte belongs to two blocks
    """
    index_W, absmax_S = _nearest(weight.flatten().float(), _levels(weight.device), block)
    index_W = F.pad(index_W, (0, len(index_W) % 2), value=NF4_LEVELS.index(0.0))
    return index_W[::2] << 4 | index_W[1::2], absmax_S


def dequantise_nf4(codes_P: Tensor, absmax_S: Tensor, shape: Sequence[int], block: int) -> Tensor:
    """The inverse, in the type of `absmax_S`."""
    size = torch.Size(shape).numel()
    whole = size // block * block
    # One look-up gives two floats, read as one integer of 64 bits: a tenth of the time of looking up each number.
    weight_W = _pairs(codes_P.device).index_select(0, codes_P.int()).view(torch.float32)[:size]
    absmax_S1 = absmax_S.float().unsqueeze(1)
    weight_W[:whole].view(-1, block).mul_(absmax_S1[: whole // block])
    weight_W[whole:].mul_(absmax_S1[whole // block :].view(-1))
    return weight_W.view(shape).to(absmax_S.dtype)


def pick_nf4(codes_P: Tensor, absmax_S: Tensor, positions: Tensor, block: int) -> Tensor:
    """The numbers at `positions` (of any shape, counted in the flat tensor) alone."""
    byte = codes_P[positions // 2]
    index = torch.where(positions % 2 == 0, byte >> 4, byte & 15)
    picked = _levels(codes_P.device)[index.int()] * absmax_S[positions // block].float()
    return picked.to(absmax_S.dtype)


def quantise_absmax(absmax_S: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """absmax_S -> 8-bit codes_S, one scale for each 256 of them, and their offset (QLoRA's double quantisation).

    Codes are the nearest ones, as on a GPU; those of bitsandbytes on a CPU come from an approximate search.
    """
    offset = absmax_S.mean()
    codes_S, scale = _nearest(absmax_S - offset, _dynamic_levels(absmax_S.device), _ABSMAX_BLOCK)
    return codes_S, scale, offset


def dequantise_absmax(codes_S: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """The inverse, in the type of `scale`."""
    absmax_S = _dynamic_levels(codes_S.device)[codes_S.int()]
    return (absmax_S * scale.repeat_interleave(_ABSMAX_BLOCK)[: len(codes_S)].float() + offset.float()).to(scale.dtype)


def _nearest(values_W: Tensor, levels: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Indices_W (uint8) of the levels nearest to values / absmax of their block, and absmax_S."""
    size = len(values_W)
    values_SB = F.pad(values_W, (0, -size % block)).view(-1, block)
    absmax_S = values_SB.abs().amax(1)
    scaled_SB = values_SB * (1 / absmax_S.clamp(min=_SMALLEST)).unsqueeze(1)
    if size % block:  # here bitsandbytes (on a CPU) divides, which may round otherwise, and stores what it divided by
        absmax_S[-1].clamp_(min=_SMALLEST)
        scaled_SB[-1] = values_SB[-1] / absmax_S[-1]
    index_SB = torch.bucketize(scaled_SB, (levels[:-1] + levels[1:]) / 2, out_int32=True)
    return index_SB.to(torch.uint8).flatten()[:size], absmax_S


@functools.cache
def _levels(device: torch.device) -> Tensor:
    return torch.tensor(NF4_LEVELS, device=device)


@functools.cache
def _pairs(device: torch.device) -> Tensor:
    """For each of the 256 bytes its two levels, as the bits of one integer."""
    levels = _levels(device)
    return torch.stack([levels.repeat_interleave(16), levels.repeat(16)], dim=1).view(torch.int64).flatten()


@functools.cache
def _dynamic_levels(device: torch.device) -> Tensor:
    """256 numbers with a dynamic exponent (Dettmers 2016): +- 10^(i - 6) times 2^i fractions, i = 0 ... 6; 0 and 1."""
    bounds = [torch.linspace(0.1, 1, 2**i + 1, device="cpu") for i in range(7)]
    positive = torch.cat([10.0 ** (i - 6) * ((b[:-1] + b[1:]) / 2) for i, b in enumerate(bounds)])
    ends = torch.tensor([0.0, 1.0], device="cpu")
    return torch.cat([positive, -positive, ends]).sort().values.to(device)

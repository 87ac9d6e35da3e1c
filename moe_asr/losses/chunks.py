"""Losses over a large vocabulary without keeping the logits.

Shape letters: M positions, C positions of a chunk, D model width, V vocabulary, P parts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 2**24  # logits held at once; 64 MiB in float32

Terms = Callable[[Tensor, slice, bool], tuple[list[Tensor], Tensor | None]]
"""(logits_CV in float32, free to be overwritten; which of the positions these are; whether to make gradients) ->
(sums over the chunk: the loss, then parts of it that are reported; the gradient of the loss for the logits)"""


def lowered(hidden_MD: Tensor) -> Tensor:
    """In the type of products under autocast."""
    if torch.is_autocast_enabled(hidden_MD.device.type):
        return hidden_MD.to(torch.get_autocast_dtype(hidden_MD.device.type))
    return hidden_MD


def chunked_loss(hidden_MD: Tensor, weight_VD: Tensor, terms: Terms) -> list[Tensor]:
    """Sums over positions of what `terms` makes of the logits `hidden weight^T`; only the first has a gradient.

    The logits of a few positions at a time are computed, turned into their gradient at once and dropped, so that the
    vocabulary-sized memory is that of one chunk, forward and backward.
    """
    return list(_ChunkedLoss.apply(lowered(hidden_MD), weight_VD, terms, torch.is_grad_enabled()))


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_MD, weight_VD, terms, with_grad):
        need_hidden, need_weight = (with_grad and need for need in ctx.needs_input_grad[:2])
        W_VD = weight_VD.to(hidden_MD.dtype)
        dhidden = torch.empty_like(hidden_MD) if need_hidden else None
        dweight = torch.zeros_like(weight_VD, dtype=torch.float32) if need_weight else None
        sums: list[Tensor] | None = None
        step = max(1, CHUNK // weight_VD.shape[0])
        with torch.autocast(hidden_MD.device.type, enabled=False):
            for first in range(0, max(hidden_MD.shape[0], 1), step):
                rows = slice(first, first + step)
                h_CD = hidden_MD[rows]
                found, d_CV = terms((h_CD @ W_VD.t()).float(), rows, need_hidden or need_weight)
                sums = found if sums is None else [old + new for old, new in zip(sums, found)]
                if d_CV is not None:
                    d_CV = d_CV.to(hidden_MD.dtype)
                    if need_hidden:
                        torch.mm(d_CV, W_VD, out=dhidden[rows])
                    if need_weight:
                        dweight += d_CV.t() @ h_CD
        ctx.save_for_backward(*(grad for grad in (dhidden, dweight) if grad is not None))
        ctx.has, ctx.weight_dtype = (dhidden is not None, dweight is not None), weight_VD.dtype
        ctx.mark_non_differentiable(*sums[1:])
        return tuple(sums)

    @staticmethod
    @once_differentiable
    def backward(ctx, dtotal, *_):
        saved = iter(ctx.saved_tensors)
        dhidden, dweight = (next(saved) * dtotal if has else None for has in ctx.has)
        return dhidden, None if dweight is None else dweight.to(ctx.weight_dtype), None, None

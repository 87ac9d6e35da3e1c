"""Cross-entropy over a large vocabulary without keeping the logits.

Shape letters: M positions, D model width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 2**24  # logits held at once; 64 MiB in float32


def chunked_cross_entropy(
    hidden_MD: Tensor, weight_VD: Tensor, targets_M: Tensor, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Sum over positions of the cross-entropy of `softmax(hidden weight^T)`, in nats, and how many of them are right.

        loss = sum_m (1 - s) * -log p_m[y_m]  +  s / V * sum_v -log p_m[v]

    The logits of a few positions at a time are computed, turned into their gradient at once and dropped, so that the
    vocabulary-sized memory is that of one chunk, forward and backward.

    Args:
        smoothing: s, the share of the target spread evenly over the vocabulary
    """
    if torch.is_autocast_enabled(hidden_MD.device.type):
        hidden_MD = hidden_MD.to(torch.get_autocast_dtype(hidden_MD.device.type))
    return _ChunkedCrossEntropy.apply(hidden_MD, weight_VD, targets_M, smoothing, torch.is_grad_enabled())


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_MD, weight_VD, targets_M, smoothing, with_grad):
        need_hidden, need_weight = (with_grad and need for need in ctx.needs_input_grad[:2])
        W_VD = weight_VD.to(hidden_MD.dtype)
        dhidden = torch.empty_like(hidden_MD) if need_hidden else None
        dweight = torch.zeros_like(weight_VD, dtype=torch.float32) if need_weight else None
        total, correct = hidden_MD.new_zeros((), dtype=torch.float32), targets_M.new_zeros(())
        step = max(1, CHUNK // weight_VD.shape[0])
        with torch.autocast(hidden_MD.device.type, enabled=False):
            for first in range(0, hidden_MD.shape[0], step):
                h_CD, y_C1 = hidden_MD[first : first + step], targets_M[first : first + step, None]
                log_p_CV = (h_CD @ W_VD.t()).float()
                correct += (log_p_CV.argmax(1, keepdim=True) == y_C1).sum()
                log_p_CV -= log_p_CV.logsumexp(1, keepdim=True)
                total -= (1 - smoothing) * log_p_CV.gather(1, y_C1).sum()
                if smoothing:
                    total -= smoothing * log_p_CV.mean(1).sum()
                if need_hidden or need_weight:
                    d_CV = log_p_CV.exp_()
                    d_CV -= smoothing / weight_VD.shape[0]
                    d_CV.scatter_add_(1, y_C1, d_CV.new_full((), smoothing - 1).expand_as(y_C1))
                    d_CV = d_CV.to(hidden_MD.dtype)
                    if need_hidden:
                        torch.mm(d_CV, W_VD, out=dhidden[first : first + step])
                    if need_weight:
                        dweight += d_CV.t() @ h_CD
        ctx.save_for_backward(*(grad for grad in (dhidden, dweight) if grad is not None))
        ctx.has, ctx.weight_dtype = (dhidden is not None, dweight is not None), weight_VD.dtype
        ctx.mark_non_differentiable(correct)
        return total, correct

    @staticmethod
    @once_differentiable
    def backward(ctx, dtotal, _):
        saved = iter(ctx.saved_tensors)
        dhidden, dweight = (next(saved) * dtotal if has else None for has in ctx.has)
        return dhidden, None if dweight is None else dweight.to(ctx.weight_dtype), None, None, None

"""How probabilities over experts become weights: pure functions, each differentiable, each keeping at least one expert.

Shapes: p and w are (..., E) with sum 1 over E; tau and sparsity broadcast against (..., 1).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def soft_threshold(p: Tensor, tau: Tensor) -> Tensor:
    """`w_e = relu(p_e - tau) / sum_j relu(p_j - tau)`, differentiable in p and tau (AdaMoLE, arXiv 2405.00361).

    At least one expert survives where tau < max p, which tau < 1/E guarantees.
    """
    return _SoftThreshold.apply(p, tau)


def hard_threshold(p: Tensor, tau: Tensor) -> Tensor:
    """`w_e = p_e [p_e >= tau] / sum_j p_j [p_j >= tau]`; tau gets no gradient."""
    kept = p * (p >= tau)
    return kept / kept.sum(-1, keepdim=True)


def top_k(p: Tensor, k: int) -> Tensor:
    """The k largest probabilities, renormalised; ties go to the lower index, so that results repeat everywhere."""
    kept = (
        torch.zeros_like(p).scatter(-1, torch.sort(p, dim=-1, descending=True, stable=True).indices[..., :k], 1.0) * p
    )
    return kept / kept.sum(-1, keepdim=True)


def sparsegen(p: Tensor, sparsity: Tensor) -> Tensor:
    """Projection of `p / (1 - sparsity)` onto the simplex, in closed form (Laha et al. 2018; used by LD-MoLE).

    `w = argmin_{w in simplex} |w - p|^2 - sparsity |w|^2`. Sparsity 0 keeps p as it is, towards 1 only the largest
    stays; at least one expert always survives.
    """
    # The projection does not change when all are shifted; relative to the largest nothing overflows near sparsity 1.
    z = (p - p.amax(-1, keepdim=True)) / (1.0 - sparsity).clamp_min(1e-6)
    ordered = z.sort(-1, descending=True).values
    count = torch.arange(1, z.shape[-1] + 1, device=z.device, dtype=z.dtype)
    total = ordered.cumsum(-1)
    support = (1.0 + count * ordered > total).sum(-1, keepdim=True)
    tau = (total.gather(-1, support - 1) - 1.0) / support
    return torch.relu(z - tau)


class _SoftThreshold(torch.autograd.Function):
    # Written out so that only p and tau are kept for backward, not relu's and the quotient's results as well.
    @staticmethod
    def forward(ctx, p, tau):
        ctx.save_for_backward(p, tau)
        kept = torch.relu(p - tau)
        return kept.div_(kept.sum(-1, keepdim=True))

    @staticmethod
    @once_differentiable
    def backward(ctx, dw):
        p, tau = ctx.saved_tensors
        kept = torch.relu(p - tau)
        total = kept.sum(-1, keepdim=True)
        mean = (dw * kept).sum(-1, keepdim=True) / total
        dp = torch.where(kept > 0, (dw - mean) / total, 0.0)
        dtau = None
        if ctx.needs_input_grad[1]:
            dtau = (-dp).sum_to_size(tau.shape)
        return dp if dp.shape == p.shape else dp.sum_to_size(p.shape), dtau

"""Distillation over a large vocabulary: what a teacher says of each position, beside what the transcript says.

Shape letters: M positions, C positions of a chunk, D model width, V vocabulary.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from moe_asr.losses.chunks import chunked_loss, lowered
from moe_asr.losses.cross_entropy import cross_entropy_gradient_, cross_entropy_term

Divergence = Literal["kl", "js"]


def distillation_loss(
    hidden_MD: Tensor,
    weight_VD: Tensor,
    targets_M: Tensor,
    smoothing: float = 0.0,
    *,
    teacher_MD: Tensor,
    weight: float = 0.5,
    temperature: float = 1.0,
    divergence: Divergence = "kl",
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum over positions, in nats, with one output layer for student and teacher (Hinton et al. 2015):

        loss = (1 - lambda) CE(y, p_s) + lambda T^2 D(p_t(T), p_s(T)),   p(T) = softmax(hidden weight^T / T)

    with `D = KL(p_t || p_s) = sum_v p_t log(p_t / p_s)`, or the Jensen-Shannon divergence, at most log 2,
    `D = KL(p_t || m) / 2 + KL(p_s || m) / 2` for `m = (p_t + p_s) / 2` (as in DistilWhisper). Only the student has a
    gradient. Where both have the same states KL is 0 exactly, since their logits are computed alike, and
    Jensen-Shannon is 0 up to rounding. Parts: `ce`, `kl` or `js` (both before lambda and T^2), `accuracy` (positions
    that the student has right). For memory see `chunked_loss`; a few tensors of a chunk's size are held.

    Args:
        hidden_MD: the student's states
        smoothing: of the cross-entropy
        teacher_MD: the teacher's states at the same positions
        weight: lambda
        temperature: T
    """
    teacher_MD = lowered(teacher_MD.detach())
    W_VD = weight_VD.detach().to(teacher_MD.dtype)
    T = temperature

    def terms(logits_CV: Tensor, rows: slice, with_grad: bool) -> tuple[list[Tensor], Tensor | None]:
        y_C1 = targets_M[rows, None]
        correct = (logits_CV.argmax(1, keepdim=True) == y_C1).sum()
        log_t_CV = (teacher_MD[rows] @ W_VD.t()).float().div_(T).log_softmax(1)
        log_s_CV = (logits_CV / T).log_softmax(1)
        apart, d_CV = (_kl if divergence == "kl" else _js)(log_t_CV, log_s_CV, with_grad)
        log_p_CV = logits_CV.sub_(logits_CV.logsumexp(1, keepdim=True))
        ce = cross_entropy_term(log_p_CV, y_C1, smoothing)
        total = (1 - weight) * ce + weight * T**2 * apart
        if with_grad:
            d_CV = d_CV.mul_(weight * T).add_(cross_entropy_gradient_(log_p_CV, y_C1, smoothing), alpha=1 - weight)
        return [total, ce, apart, correct], d_CV

    total, ce, apart, correct = chunked_loss(hidden_MD, weight_VD, terms)
    return total, {"ce": ce, divergence: apart, "accuracy": correct}


def _kl(log_t_CV: Tensor, log_s_CV: Tensor, with_grad: bool) -> tuple[Tensor, Tensor | None]:
    """The divergence of some positions, and its gradient for the student's logits / T, `p_s - p_t`."""
    t_CV = log_t_CV.exp()
    apart = (t_CV * (log_t_CV - log_s_CV)).sum()
    return apart, log_s_CV.exp().sub_(t_CV) if with_grad else None


def _js(log_t_CV: Tensor, log_s_CV: Tensor, with_grad: bool) -> tuple[Tensor, Tensor | None]:
    """The same for Jensen-Shannon: `p_s (g - sum_v p_s g)` with `g = log(p_s / m) / 2`."""
    log_m_CV = torch.logaddexp(log_t_CV, log_s_CV) - torch.tensor(2.0).log().item()
    s_CV, g_CV = log_s_CV.exp(), (log_s_CV - log_m_CV).div_(2)
    mean_C1 = (s_CV * g_CV).sum(1, keepdim=True)
    apart = (log_t_CV.exp() * (log_t_CV - log_m_CV)).sum() / 2 + mean_C1.sum()
    return apart, s_CV.mul_(g_CV.sub_(mean_C1)) if with_grad else None

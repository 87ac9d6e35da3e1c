"""Distillation over a large vocabulary: what a teacher says of each position, beside what the transcript says.

Shape letters: M positions, C positions of a chunk, D model width, V vocabulary.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from moe_asr.losses.chunks import chunked_loss, lowered
from moe_asr.losses.cross_entropy import cross_entropy_gradient_, cross_entropy_term
from moe_asr.losses.top_tokens import TopTokens, log_rest

Divergence = Literal["kl", "js"]


def distillation_loss(
    hidden_MD: Tensor,
    weight_VD: Tensor,
    targets_M: Tensor,
    smoothing: float = 0.0,
    *,
    teacher: Tensor | TopTokens,
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
    that the student has right).

    Beside a teacher's K best tokens, all others are one event: with `r = 1 - sum_{k in K} p_k` of each of the two,

        KL = sum_{k in K} p_t,k log(p_t,k / p_s,k) + r_t log(r_t / r_s)

    and Jensen-Shannon likewise; never above that over all tokens, and how the student divides r_s is left to the
    transcript. For memory see `chunked_loss`; a few tensors of a chunk's size are held.

    Args:
        hidden_MD: the student's states
        smoothing: of the cross-entropy
        teacher: its states at the same positions (M, D), or its best tokens there, at the same T
        weight: lambda
        temperature: T
    """
    if isinstance(teacher, Tensor):
        teacher = lowered(teacher.detach())
    W_VD = weight_VD.detach().to(hidden_MD.dtype if isinstance(teacher, TopTokens) else teacher.dtype)
    T = temperature
    diverge = _kl if divergence == "kl" else _js

    def terms(logits_CV: Tensor, rows: slice, with_grad: bool) -> tuple[list[Tensor], Tensor | None]:
        y_C1 = targets_M[rows, None]
        correct = (logits_CV.argmax(1, keepdim=True) == y_C1).sum()
        log_s_CV = (logits_CV / T).log_softmax(1)
        if isinstance(teacher, TopTokens):
            apart, d_CV = _over_top(diverge, teacher[rows], log_s_CV, with_grad)
        else:
            log_t_CV = (teacher[rows] @ W_VD.t()).float().div_(T).log_softmax(1)
            apart, d_CV = diverge(log_t_CV, log_s_CV, with_grad)
        log_p_CV = logits_CV.sub_(logits_CV.logsumexp(1, keepdim=True))
        ce = cross_entropy_term(log_p_CV, y_C1, smoothing)
        total = (1 - weight) * ce + weight * T**2 * apart
        if with_grad:
            d_CV = d_CV.mul_(weight * T).add_(cross_entropy_gradient_(log_p_CV, y_C1, smoothing), alpha=1 - weight)
        return [total, ce, apart, correct], d_CV

    total, ce, apart, correct = chunked_loss(hidden_MD, weight_VD, terms)
    return total, {"ce": ce, divergence: apart, "accuracy": correct}


def _over_top(diverge, top: TopTokens, log_s_CV: Tensor, with_grad: bool) -> tuple[Tensor, Tensor | None]:
    """Divergence and gradient where all tokens but the teacher's best are one event, the last."""
    rest_C1 = log_rest(log_s_CV, top.ids_MK)[:, None]
    log_s_CE = torch.cat([log_s_CV.gather(1, top.ids_MK), rest_C1], 1)
    apart, d_CE = diverge(torch.cat([top.log_p_MK, top.log_rest_M[:, None]], 1), log_s_CE, with_grad)
    if not with_grad:
        return apart, None
    # what holds for the event is shared among its tokens by their probabilities in it
    d_CV = log_s_CV.sub_(rest_C1).exp_().mul_(d_CE[:, -1:])
    return apart, d_CV.scatter_(1, top.ids_MK, d_CE[:, :-1])


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

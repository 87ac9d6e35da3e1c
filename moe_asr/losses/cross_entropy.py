"""Cross-entropy over a large vocabulary without keeping the logits.

Shape letters: M positions, C positions of a chunk, D model width, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor

from moe_asr.losses.chunks import chunked_loss


def chunked_cross_entropy(
    hidden_MD: Tensor, weight_VD: Tensor, targets_M: Tensor, smoothing: float = 0.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum over positions of the cross-entropy of `softmax(hidden weight^T)`, in nats.

        loss = sum_m (1 - s) * -log p_m[y_m]  +  s / V * sum_v -log p_m[v]

    Part `accuracy` is how many positions are right. For memory see `chunked_loss`.

    Args:
        smoothing: s, the share of the target spread evenly over the vocabulary
    """

    def terms(logits_CV: Tensor, rows: slice, with_grad: bool) -> tuple[list[Tensor], Tensor | None]:
        y_C1 = targets_M[rows, None]
        correct = (logits_CV.argmax(1, keepdim=True) == y_C1).sum()
        log_p_CV = logits_CV.sub_(logits_CV.logsumexp(1, keepdim=True))
        total = cross_entropy_term(log_p_CV, y_C1, smoothing)
        return [total, correct], cross_entropy_gradient_(log_p_CV, y_C1, smoothing) if with_grad else None

    total, correct = chunked_loss(hidden_MD, weight_VD, terms)
    return total, {"accuracy": correct}


def cross_entropy_term(log_p_CV: Tensor, y_C1: Tensor, smoothing: float) -> Tensor:
    """The loss of some positions."""
    total = -(1 - smoothing) * log_p_CV.gather(1, y_C1).sum()
    return total - smoothing * log_p_CV.mean(1).sum() if smoothing else total


def cross_entropy_gradient_(log_p_CV: Tensor, y_C1: Tensor, smoothing: float) -> Tensor:
    """Its gradient for the logits, `p - target`, in the place of the log-probabilities."""
    d_CV = log_p_CV.exp_()
    d_CV -= smoothing / d_CV.shape[1]
    return d_CV.scatter_add_(1, y_C1, d_CV.new_full((), smoothing - 1).expand_as(y_C1))

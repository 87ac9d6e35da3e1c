"""The CTC loss (Graves et al. 2006), by torch or by k2.

Shape letters: N utterances, T frames, U tokens, V vocabulary with blank.
"""

from __future__ import annotations

from types import ModuleType
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_asr.errors import UserError

CtcBackend = Literal["torch", "k2"]
OUTPUT_BEAM = 30.0  # what k2 drops is exp(-30) of the best alignment: below the resolution of float32


def ctc_loss(
    log_probs_NTV: Tensor,
    lengths_N: Tensor,
    tokens_NU: Tensor,
    token_lengths_N: Tensor,
    blank: int = 0,
    backend: CtcBackend = "torch",
) -> tuple[Tensor, Tensor]:
    """loss_N = -log sum over alignments a of the tokens of prod_t p_t(a_t), in nats, and fits_N.

    A text with more tokens (plus one for each immediate repetition) than frames has no alignment: it does not fit, and
    its loss is zero. The two backends agree in the loss and in its gradient by what `log_softmax` made the
    log-probabilities from.

    Args:
        log_probs_NTV: float32, from `log_softmax`

    Raises:
        UserError: k2 is asked for and not installed.
    """
    fits_N = required_frames(tokens_NU, token_lengths_N) <= lengths_N
    if backend == "k2":
        with torch.inference_mode(False):  # k2 counts the versions of tensors
            return _k2_loss(log_probs_NTV, lengths_N, tokens_NU, token_lengths_N, blank, fits_N), fits_N
    loss_N = F.ctc_loss(
        log_probs_NTV.transpose(0, 1),
        tokens_NU,
        lengths_N,
        token_lengths_N,
        blank=blank,
        reduction="none",
        zero_infinity=True,  # those are the texts that do not fit
    )
    return loss_N.masked_fill(~fits_N, 0.0), fits_N


def required_frames(tokens_NU: Tensor, token_lengths_N: Tensor) -> Tensor:
    """Frames of the shortest alignment: one per token, and a blank between two equal neighbours."""
    inside_NU = torch.arange(tokens_NU.size(1), device=tokens_NU.device)[1:] < token_lengths_N.unsqueeze(1)
    return token_lengths_N + ((tokens_NU[:, 1:] == tokens_NU[:, :-1]) & inside_NU).sum(1)


def import_k2(what: str, instead: str) -> ModuleType:
    """The module k2, for what needs it; the message for who has not got it names what to take instead.

    Raises:
        UserError: it is not installed, or was built for another torch.
    """
    try:
        import k2
    except (ImportError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{what} needs k2 ({reason}): run tools/install_k2.sh, or take {instead}") from None
    return k2


def _k2_loss(log_probs_NTV, lengths_N, tokens_NU, token_lengths_N, blank, fits_N) -> Tensor:
    k2 = import_k2("ctc_backend k2", "ctc_backend torch")
    assert blank == 0, f"k2's blank is token 0, not {blank}"
    # k2 wants the longest first; of an utterance without frames, and of one that does not fit, it knows nothing
    order = torch.argsort(lengths_N, descending=True, stable=True)
    order = order[(fits_N & (lengths_N > 0))[order]]
    loss_N = log_probs_NTV.new_zeros(len(lengths_N)) + log_probs_NTV[:0].sum()  # zero, but with a graph
    if not len(order):
        return loss_N
    segments = torch.stack([order, torch.zeros_like(order), lengths_N[order]], dim=1).to("cpu", torch.int32)
    texts = [row[:length].tolist() for row, length in zip(tokens_NU[order].cpu(), token_lengths_N[order].tolist())]
    device = log_probs_NTV.device if k2.with_cuda else "cpu"
    losses = k2.ctc_loss(
        k2.ctc_graph(texts, device=device),
        k2.DenseFsaVec(log_probs_NTV.to(device), segments),
        output_beam=OUTPUT_BEAM,
        reduction="none",
    )
    return loss_N.index_copy(0, order, losses.to(loss_N))

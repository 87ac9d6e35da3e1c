"""Pooling: what a router sees of a whole utterance, its frames x_t made into one vector z.

Over which frames is a choice of its own:

    real     those of the utterance, never its padding: z depends on nothing else in the batch
    prefix   at each frame t those up to t, so that z_t does not know the future: one z for each frame
    all      the padding as well, as where no mask is at hand; z depends on how the batch was padded

Shapes: N utterances, T frames, Q positions that z is wanted for (1, for prefix T), I width.
"""

from __future__ import annotations

import math
from typing import Literal, Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moe_asr.errors import UserError

Over = Literal["real", "prefix", "all"]


class MeanPooling(nn.Module):
    """`z = mean_t x_t`."""

    def forward(self, x_NTI: Tensor, mask_NT: Optional[Tensor], over: Over = "real") -> Tensor:
        """(N, Q, I); see `AttentivePooling.forward`."""
        x_NTI = _seen(x_NTI, mask_NT, over)
        if over == "all":
            return x_NTI.mean(1, keepdim=True)
        if over == "prefix":
            count_T = torch.arange(1, x_NTI.shape[1] + 1, device=x_NTI.device, dtype=x_NTI.dtype)
            return x_NTI.cumsum(1) / count_T[:, None]
        return x_NTI.sum(1, keepdim=True) / mask_NT.sum(1)[:, None, None]


class AttentivePooling(nn.Module):
    """`z = sum_t a_t u_t` with `u = Conv1d(x)`, I to I channels, kernel 3, and `a = softmax_t(q . u_t)`.

    The convolution sees zeros outside of the utterance; for prefix its kernel ends at t instead of lying around it. A
    bias of the scores would cancel in the softmax, and so does `q . b`; there is no parameter for it.

    Since the convolution is linear, u is never computed: the scores are a convolution of x with the one kernel `q^T K`,
    and `z = b + sum_j K_j sum_t a_t x_{t+j}`. That takes 6 I multiplications for each frame instead of 3 I^2.
    """

    def __init__(self, width: int, **factory) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, width, 3, **factory))  # as nn.Conv1d keeps it
        self.bias = nn.Parameter(torch.empty(width, **factory))
        self.query = nn.Parameter(torch.empty(width, **factory))
        for parameter, fan_in in ((self.weight, 3 * width), (self.bias, 3 * width), (self.query, width)):
            nn.init.uniform_(parameter, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))

    def forward(self, x_NTI: Tensor, mask_NT: Optional[Tensor], over: Over = "real") -> Tensor:
        """(N, Q, I).

        Args:
            mask_NT: True on real frames; needed over real frames, and for prefix where padding is not finite

        Raises:
            UserError: the real frames are not known
        """
        x_NTI = _seen(x_NTI, mask_NT, over)
        weight_O3I, query_O = self.weight.to(x_NTI.dtype).transpose(1, 2), self.query.to(x_NTI.dtype)
        T, before = x_NTI.shape[1], 2 if over == "prefix" else 1  # u_t is made of the frames from t - before on
        taps_NT3 = F.pad(F.linear(x_NTI, torch.tensordot(query_O, weight_O3I, 1)), (0, 0, before, 2 - before))
        scores_NQT = sum(taps_NT3[:, j : j + T, j] for j in range(3))[:, None]
        if over == "prefix":
            future_TT = torch.ones(T, T, dtype=torch.bool, device=x_NTI.device).triu(1)
            scores_NQT = scores_NQT.masked_fill(future_TT, -math.inf)
        elif over == "real":
            scores_NQT = scores_NQT.masked_fill(~mask_NT[:, None], -math.inf)
        # a_t belongs to the frames t - before + j: moved there, one product sums all three kinds of frames.
        a_NQT = F.pad(scores_NQT.softmax(-1), (2 - before, before))
        moved_NQ3T = torch.stack([a_NQT[..., 2 - j : 2 - j + T] for j in range(3)], 2)
        sums_NQ3I = (moved_NQ3T.flatten(1, 2) @ x_NTI).unflatten(1, (-1, 3))
        return F.linear(sums_NQ3I.flatten(2), weight_O3I.flatten(1), self.bias.to(x_NTI.dtype))


def _seen(x_NTI: Tensor, mask_NT: Optional[Tensor], over: Over) -> Tensor:
    """The frames with zeros where they must not be seen."""
    if over == "real" and mask_NT is None:
        raise UserError(
            "a router pools over the frames of each utterance and must not see padding: call the model inside "
            "`with adapter.route(lengths=...)` with lengths at the layers' frame rate"
        )
    # where, not a product: padding may hold anything, even NaN.
    return x_NTI if over == "all" or mask_NT is None else torch.where(mask_NT[..., None], x_NTI, 0.0)

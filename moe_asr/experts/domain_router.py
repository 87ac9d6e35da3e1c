"""A router of the whole model: which domain an utterance is of, by the states of the frozen encoder.

Shapes: N utterances, T frames, D width of the states, G domains.
"""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moe_asr.experts.pooling import MeanPooling


class DomainRouter(nn.Module):
    """`p_NG = softmax(W mean_t h_NTD + c)`, the mean over real frames; W and c start at 0, so p is uniform at first.

    Its posteriors are given to the expert layers as if a domain classifier had made them; their gradient trains it, and
    so does a cross-entropy of its own.
    """

    def __init__(self, width: int, num_domains: int, **factory) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_domains, width, **factory))
        self.bias = nn.Parameter(torch.zeros(num_domains, **factory))
        self.mean = MeanPooling()

    def forward(self, states_NTD: Tensor, mask_NT: Optional[Tensor]) -> Tensor:
        """Log-probabilities (N, G).

        Args:
            mask_NT: True on real frames
        """
        mean_ND = self.mean(states_NTD.to(self.weight.dtype), mask_NT)[:, 0]
        with torch.autocast(mean_ND.device.type, enabled=False):
            return F.linear(mean_ND, self.weight, self.bias).log_softmax(-1)

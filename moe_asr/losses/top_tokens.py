"""A teacher that is remembered by its best tokens alone.

Shape letters: M positions, C positions of a chunk, D model width, V vocabulary, K tokens kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moe_asr.errors import UserError
from moe_asr.losses import chunks


@dataclass(frozen=True)
class TopTokens:
    """The K most probable tokens of each position, and what all others have together.

    Args:
        ids_MK: the tokens
        log_p_MK: log p(T) of each
        log_rest_M: log of the probability of all others, log(1 - sum_k p_k)
    """

    ids_MK: Tensor
    log_p_MK: Tensor
    log_rest_M: Tensor

    def __getitem__(self, rows: slice) -> TopTokens:
        return TopTokens(self.ids_MK[rows], self.log_p_MK[rows], self.log_rest_M[rows])

    def to(self, device: torch.device | str) -> TopTokens:
        return TopTokens(*(tensor.to(device) for tensor in (self.ids_MK, self.log_p_MK, self.log_rest_M)))


@torch.no_grad()
def top_tokens(hidden_MD: Tensor, weight_VD: Tensor, k: int, temperature: float = 1.0) -> TopTokens:
    """Those of `p(T) = softmax(hidden weight^T / T)`, a few positions at a time.

    Raises:
        UserError: k is not below the size of the vocabulary
    """
    V = weight_VD.shape[0]
    if not 1 <= k < V:
        raise UserError(f"distillation: top_k must be from 1 to below the {V} tokens of the model, not {k}")
    hidden_MD = chunks.lowered(hidden_MD)
    W_VD = weight_VD.to(hidden_MD.dtype)
    found = []
    with torch.autocast(hidden_MD.device.type, enabled=False):
        for h_CD in hidden_MD.split(max(1, chunks.CHUNK // V)):
            log_p_CV = (h_CD @ W_VD.t()).float().div_(temperature).log_softmax(1)
            ids_CK = log_p_CV.topk(k, 1).indices
            found.append((ids_CK, log_p_CV.gather(1, ids_CK), log_rest(log_p_CV, ids_CK)))
    return TopTokens(*(torch.cat(parts) for parts in zip(*found)))


def log_rest(log_p_CV: Tensor, ids_CK: Tensor) -> Tensor:
    """Log of the probability of all tokens but these, (C); from theirs, since 1 - sum would round to 0."""
    return log_p_CV.scatter(1, ids_CK, -torch.inf).logsumexp(1)

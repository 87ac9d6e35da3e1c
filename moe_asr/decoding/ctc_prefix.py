"""CTC scores of texts that grow token by token, for search together with a decoder.

Shape letters: N utterances, T frames, V vocabulary with blank, K hypotheses of an utterance, C candidate tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

_IMPOSSIBLE = -1000.0  # nats; finite, so that sums over frames can be subtracted from each other


class CTCPrefixScorer:
    """log P(text begins with y c), and log P(text is y), of all alignments (Watanabe et al. 2017, algorithm 2).

    With n_t(y) and b_t(y) the log-probabilities that the first t frames spell y and end in its last token or in blank,
    x_t the log-probabilities of frame t, and (+) log-sum-exp,

        into_t(y, c) = b_{t-1}(y), and (+) n_{t-1}(y) unless c is the last token of y
        score(y c)   = (+)_t into_t(y, c) + x_t(c)                  score of the text y = n_T(y) (+) b_T(y)
        n_t(y c)     = (n_{t-1}(y c) (+) into_t(y, c)) + x_t(c)
        b_t(y c)     = (b_{t-1}(y c) (+) n_{t-1}(y c)) + x_t(blank)

    The scores of candidates need nothing but `into`, so that n and b are computed for the chosen ones only; with
    X_t = sum_{s <= t} x_s they are n_t = X_t + cumulative (+)_s (into_s - X_{s-1}), without a loop over frames. All is
    in float64, where those differences of sums are exact enough.

    Args:
        log_probs_NTV: a probability below exp(-1000) counts as that
        blank: is never a candidate worth taking
    """

    def __init__(self, log_probs_NTV: Tensor, lengths_N: Tensor, blank: int = 0) -> None:
        num, frames, _ = log_probs_NTV.shape
        self.blank = blank
        self._x_NVT = log_probs_NTV.transpose(1, 2).to(torch.float64).clamp_min(_IMPOSSIBLE).contiguous()
        self._lengths = lengths_N.to(log_probs_NTV.device)
        self._real_NT = torch.arange(frames, device=log_probs_NTV.device) < self._lengths[:, None]
        self._blank_NT = _sums(self._x_NVT[:, blank])
        self._b_NKT = self._blank_NT[:, None]  # with the time before the first frame, T + 1 values
        self._n_NKT = torch.full_like(self._b_NKT, -torch.inf)
        self._last_NK = torch.full((num, 1), blank, device=log_probs_NTV.device)

    def score(self, tokens_NKC: Tensor) -> Tensor:
        """Of each text y c, for the tokens c of each hypothesis y: (N, K, C)."""
        rows = torch.arange(len(tokens_NKC), device=tokens_NKC.device)
        any_NKT, repeated_NKT = self._into(self._n_NKT), self._into()
        score_NKC = (any_NKT[:, :, None] + self._x_NVT[rows[:, None, None], tokens_NKC]).logsumexp(3)
        again_NK = (repeated_NKT + self._x_NVT[rows[:, None], self._last_NK]).logsumexp(2)
        score_NKC = torch.where(tokens_NKC == self._last_NK[:, :, None], again_NK[:, :, None], score_NKC)
        return score_NKC.masked_fill(tokens_NKC == self.blank, -torch.inf)

    def finish(self) -> Tensor:
        """Of each hypothesis as a whole text: (N, K)."""
        end_NK1 = self._lengths[:, None, None].expand(*self._last_NK.shape, 1)
        return torch.logaddexp(self._n_NKT.gather(2, end_NK1), self._b_NKT.gather(2, end_NK1)).squeeze(2)

    def advance(self, index_NK: Tensor, tokens_NK: Tensor) -> None:
        """Hypothesis k of utterance n is now what was hypothesis `index[n, k]`, with one more token."""
        self._n_NKT, self._b_NKT = (v.take_along_dim(index_NK[:, :, None], 1) for v in (self._n_NKT, self._b_NKT))
        again_NK = tokens_NK == self._last_NK.take_along_dim(index_NK, 1)
        into_NKT = torch.where(again_NK[:, :, None], self._into(), self._into(self._n_NKT))
        rows_N1 = torch.arange(len(tokens_NK), device=tokens_NK.device)[:, None]
        self._n_NKT = _accumulate(into_NKT, _sums(self._x_NVT[rows_N1, tokens_NK]))
        self._b_NKT = _accumulate(self._n_NKT[:, :, :-1], self._blank_NT[:, None])
        self._last_NK = tokens_NK

    def select(self, rows: Tensor) -> None:
        """Keeps only the utterances `rows`."""
        self._x_NVT, self._lengths, self._real_NT = self._x_NVT[rows], self._lengths[rows], self._real_NT[rows]
        self._blank_NT, self._last_NK = self._blank_NT[rows], self._last_NK[rows]
        self._n_NKT, self._b_NKT = self._n_NKT[rows], self._b_NKT[rows]

    def _into(self, n_NKT: Tensor | None = None) -> Tensor:
        """into_t for t from 1 to T, minus infinity in padding frames; without n for a repeated token."""
        into_NKT = self._b_NKT if n_NKT is None else torch.logaddexp(self._b_NKT, n_NKT)
        return into_NKT[:, :, :-1].masked_fill(~self._real_NT[:, None], -torch.inf)


def _sums(x: Tensor) -> Tensor:
    """X_0 to X_T along the last dimension."""
    return torch.nn.functional.pad(x.cumsum(-1), (1, 0))


def _accumulate(into: Tensor, sums: Tensor) -> Tensor:
    """r_0 to r_T of r_t = (r_{t-1} (+) into_t) + x_t, r_0 = -infinity, where X_t are the sums of x."""
    return torch.nn.functional.pad(sums[..., 1:] + (into - sums[..., :-1]).logcumsumexp(-1), (1, 0), value=-torch.inf)

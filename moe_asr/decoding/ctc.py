"""Search over CTC log-probabilities: greedy, and prefix beam search.

Shape letters: N utterances, T frames, V vocabulary with blank, K beams, C candidate tokens per frame.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from moe_asr.decoding.prefix_tree import PrefixTree
from moe_asr.decoding.search_config import Scored, SearchConfig


def greedy(log_probs_NTV: Tensor, lengths_N: Tensor, blank: int = 0) -> list[list[int]]:
    """Best token of each frame, repetitions collapsed, blanks dropped."""
    best_NT = log_probs_NTV.argmax(dim=2)
    keep_NT = best_NT != blank
    keep_NT[:, 1:] &= best_NT[:, 1:] != best_NT[:, :-1]
    keep_NT &= torch.arange(best_NT.size(1), device=best_NT.device) < lengths_N.unsqueeze(1)
    return [part.tolist() for part in best_NT[keep_NT].cpu().split(keep_NT.sum(1).tolist())]


def prefix_beam(log_probs_NTV: Tensor, lengths_N: Tensor, config: SearchConfig, blank: int = 0) -> list[list[Scored]]:
    """CTC prefix beam search (Graves and Jaitly 2014, Hannun et al. 2014), best hypothesis first.

    With p_b, p_n the log-probabilities of all alignments of prefix y that end in blank or not, and p = p_b (+) p_n,
    where (+) is log-sum-exp, a frame with log-probabilities q makes

        p_b'(y)  = p(y) + q_blank
        p_n'(y)  = p_n(y) + q_last(y)  (+)  into(parent(y), last(y)) + q_last(y), if the parent is in the beam
        p_n'(yc) = into(y, c) + q_c          into(y, c) = p_b(y) if c = last(y), else p(y)

    and the `beam` best of all these prefixes stay. Utterances run side by side, and do not influence each other.
    """
    num_tokens = log_probs_NTV.size(2)
    masked_NTV = log_probs_NTV.detach().float().cpu().index_fill(2, torch.tensor([blank]), -torch.inf)
    num_candidates = min(config.candidates or num_tokens, num_tokens - 1)
    tokens_NTC = masked_NTV.topk(num_candidates, dim=2).indices.numpy()
    log_probs_NTV = log_probs_NTV.detach().cpu().numpy().astype(np.float64)
    lengths_N = lengths_N.cpu().numpy()

    order_N = np.argsort(-lengths_N, kind="stable")  # so that those which go on are always the first ones
    beams = _Beams(len(order_N), config, blank)
    for t in range(lengths_N.max(initial=0)):
        active_N = order_N[: np.count_nonzero(lengths_N > t)]
        beams.step(log_probs_NTV[active_N, t], tokens_NTC[active_N, t])
    found = beams.hypotheses()
    return [found[i] for i in np.argsort(order_N)]


class _Beams:
    """The beams of all utterances, [N, K]; a beam that is not in use has probability zero and node `DEAD`."""

    def __init__(self, num: int, config: SearchConfig, blank: int):
        shape = (num, config.beam)
        self.config, self.blank = config, blank
        self.trees = [PrefixTree() for _ in range(num)]
        self.node = np.full(shape, PrefixTree.DEAD)
        self.parent = np.full(shape, PrefixTree.NONE)
        self.last = np.full(shape, blank)
        self.size = np.zeros(shape, dtype=np.int64)
        self.p_blank, self.p_token = np.full(shape, -np.inf), np.full(shape, -np.inf)
        self.node[:, 0], self.p_blank[:, 0] = PrefixTree.ROOT, 0.0

    def step(self, log_probs_NV: np.ndarray, tokens_NC: np.ndarray) -> None:
        """One frame of the first N utterances, and the tokens by which prefixes may grow in it."""
        num, beam = len(log_probs_NV), self.config.beam
        row_N1, last_NK, size_NK = np.arange(num)[:, None], self.last[:num], self.size[:num]
        p_blank_NK, p_token_NK = self.p_blank[:num], self.p_token[:num]
        p_NK = np.logaddexp(p_blank_NK, p_token_NK)

        grown_NKC = np.where(tokens_NC[:, None] == last_NK[:, :, None], p_blank_NK[:, :, None], p_NK[:, :, None])
        # The blank is a candidate only where nothing but impossible tokens was left to take.
        grown_NKC += np.where(tokens_NC == self.blank, -np.inf, log_probs_NV[row_N1, tokens_NC])[:, None]
        # Beam j may be what beam i grows into: then both are the same prefix, and i may not grow there again.
        row, i, j = np.nonzero(self.node[:num, :, None] == self.parent[:num, None, :])
        into = np.where(last_NK[row, i] == last_NK[row, j], p_blank_NK[row, i], p_NK[row, i])
        same, place = np.nonzero(tokens_NC[row] == last_NK[row, j][:, None])
        grown_NKC[row[same], i[same], place] = -np.inf

        stay_token_NK = np.where(last_NK == self.blank, -np.inf, p_token_NK)
        stay_token_NK[row, j] = np.logaddexp(stay_token_NK[row, j], into)
        stay_token_NK += log_probs_NV[row_N1, last_NK]
        stay_blank_NK = p_NK + log_probs_NV[:, [self.blank]]

        all_token = np.concatenate([stay_token_NK, grown_NKC.reshape(num, -1)], axis=1)
        all_blank = np.concatenate([stay_blank_NK, np.full((num, grown_NKC[0].size), -np.inf)], axis=1)
        all_size = np.concatenate([size_NK, np.repeat(size_NK + 1, tokens_NC.shape[1], axis=1)], axis=1)
        score = np.logaddexp(all_blank, all_token) + self.config.length_bonus * all_size
        chosen_NK = np.argsort(-score, axis=1, kind="stable")[:, :beam]

        place_NK = chosen_NK - beam
        grows_NK = place_NK >= 0
        source_NK = np.where(grows_NK, place_NK // tokens_NC.shape[1], chosen_NK)
        token_NK = tokens_NC[row_N1, place_NK % tokens_NC.shape[1]]
        self.p_blank[:num], self.p_token[:num] = all_blank[row_N1, chosen_NK], all_token[row_N1, chosen_NK]
        self.size[:num] = all_size[row_N1, chosen_NK]
        self.last[:num] = np.where(grows_NK, token_NK, last_NK[row_N1, source_NK])
        self.parent[:num] = np.where(grows_NK, self.node[row_N1, source_NK], self.parent[row_N1, source_NK])
        self.node[:num] = self.node[row_N1, source_NK]
        dead_NK = np.isneginf(score[row_N1, chosen_NK])
        for n, k in zip(*np.nonzero(grows_NK & ~dead_NK)):
            self.node[n, k] = self.trees[n].child(int(self.parent[n, k]), int(self.last[n, k]))
        self.node[:num][dead_NK], self.parent[:num][dead_NK] = PrefixTree.DEAD, PrefixTree.NONE

    def hypotheses(self) -> list[list[Scored]]:
        score_NK = np.logaddexp(self.p_blank, self.p_token) + self.config.length_bonus * self.size
        return [
            [Scored(tree.tokens(n), float(s)) for n, s in zip(nodes, scores) if n != PrefixTree.DEAD]
            for tree, nodes, scores in zip(self.trees, self.node.tolist(), score_NK)
        ]

"""Search with a decoder that predicts one token after another: greedy, and beam search, alone or together with CTC.

Shape letters: N utterances, P prompt tokens, U tokens, K hypotheses of an utterance, C candidate tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor

from moe_asr.decoding.ctc_prefix import CTCPrefixScorer
from moe_asr.decoding.search_config import Scored, SearchConfig
from moe_asr.decoding.steps import Steps

_LEAVING = 0.25
"""Finished utterances leave once they are such a part of the batch; a copy of the cache costs about one step."""


@dataclass(frozen=True)
class TokenRules:
    """Which token ends a text, and which ones it may not have, at its beginning or at all."""

    end: int
    suppress: tuple[int, ...] = ()
    begin_suppress: tuple[int, ...] = ()

    def apply(self, logits: Tensor, first: bool) -> Tensor:
        """The logits with those of forbidden tokens at minus infinity, in place."""
        forbidden = (*self.suppress, *self.begin_suppress) if first else self.suppress
        return logits.index_fill_(-1, torch.tensor(forbidden, dtype=torch.int64, device=logits.device), -torch.inf)


def greedy(steps: Steps, prompt_NP: Tensor, limits_N: Tensor, rules: TokenRules) -> list[Scored]:
    """The most probable token each time.

    Args:
        limits_N: most tokens of each utterance, the end counted as one
    """
    longest = int(limits_N.max())
    tokens_NU = prompt_NP.new_full((len(prompt_NP), longest), rules.end)
    rows = torch.arange(len(prompt_NP), device=prompt_NP.device)  # those that are still in the batch
    done = torch.zeros_like(rows, dtype=torch.bool)
    new_NP = prompt_NP
    for u in range(longest):
        logits_NV = rules.apply(steps.step(new_NP[:, None]).squeeze(1), first=u == 0)
        new_N = logits_NV.argmax(1)
        tokens_NU[rows, u] = new_N
        done = done | (new_N == rules.end) | (limits_N[rows] <= u + 1)
        stay = _staying(done)
        if stay is not None:
            if not len(stay):
                break
            steps.select(stay)
            rows, done, new_N = rows[stay], done[stay], new_N[stay]
        new_NP = new_N[:, None]
    return [_text(tokens, limit, rules.end) for tokens, limit in zip(tokens_NU.tolist(), limits_N.tolist())]


def beam(
    steps: Steps,
    prompt_NP: Tensor,
    limits_N: Tensor,
    rules: TokenRules,
    config: SearchConfig,
    ctc: Optional[CTCPrefixScorer] = None,
) -> list[list[Scored]]:
    """Beam search, best hypothesis first, at most `config.beam` of each utterance.

    A hypothesis y of log-probability a(y) by the decoder, CTC score c(y) and |y| tokens has the score
    s = (1 - w) a + w c + length_bonus |y|. Of the 2K best extensions of K hypotheses, those that end are finished if
    they are among the first K, and compared by s / length^length_penalty, length with the end; the best K others go on.
    An utterance is done when K are finished and none of those that go on has a better s / length^length_penalty at its
    present length. At the limit of tokens the first K are finished as they are.

    These are the rules of `generate(num_beams=K)` in `transformers`, so that its tokens come out for Whisper.
    Utterances run side by side, and do not influence each other.
    """
    beams = _Beams(steps, prompt_NP, limits_N, rules, config, ctc)
    while len(beams.rows):
        beams.grow()
    return beams.found


class _Beams:
    """The beams of all utterances that are still in the batch.

    `tokens_NKU` have the decoder's log-probability `decoder_NK`; `ended_NKU` are finished, with their normalised scores
    `ended_NK`, sorted, minus infinity where there is none yet.
    """

    def __init__(
        self,
        steps: Steps,
        prompt_NP: Tensor,
        limits_N: Tensor,
        rules: TokenRules,
        config: SearchConfig,
        ctc: Optional[CTCPrefixScorer],
    ) -> None:
        num, device = len(prompt_NP), prompt_NP.device
        self.steps, self.rules, self.config, self.ctc = steps, rules, config, ctc
        self.found: list[list[Scored]] = [[] for _ in range(num)]
        self.rows = torch.arange(num, device=device)
        self.done = torch.zeros(num, dtype=torch.bool, device=device)
        self.limits_N = limits_N.to(device)
        self.new_NKP = prompt_NP[:, None]
        self.tokens_NKU = prompt_NP.new_empty(num, 1, 0)
        self.decoder_NK = torch.zeros(num, 1, device=device)
        self.ended_NKU = prompt_NP.new_full((num, config.beam, int(limits_N.max())), rules.end)
        self.ended_NK = torch.full((num, config.beam), -torch.inf, device=device)

    def grow(self) -> None:
        """One more token of every hypothesis."""
        length, beam = self.tokens_NKU.shape[2] + 1, self.config.beam
        tokens_NKC, decoder_NKC = self._extensions()
        score_NKC = self._scores(tokens_NKC, decoder_NKC)
        columns = tokens_NKC.shape[2]
        score_NB, place_NB = score_NKC.flatten(1).topk(min(2 * beam, score_NKC[0].numel()))
        source_NB, token_NB = place_NB // columns, tokens_NKC.flatten(1).gather(1, place_NB)
        at_limit_N = self.limits_N <= length
        ends_NB = (token_NB == self.rules.end) | at_limit_N[:, None]

        first_NK = ends_NB[:, :beam] & ~self.done[:, None]
        ended_NK = (score_NB[:, :beam] / length**self.config.length_penalty).masked_fill(~first_NK, -torch.inf)
        self._keep_ended(ended_NK, source_NB[:, :beam], token_NB[:, :beam])

        score_NK, chosen_NK = score_NB.masked_fill(ends_NB, -torch.inf).topk(min(beam, score_NB.shape[1]))
        source_NK, token_NK = source_NB.gather(1, chosen_NK), token_NB.gather(1, chosen_NK)
        hopeless_N = score_NK[:, 0] / length**self.config.length_penalty <= self.ended_NK[:, -1]
        self.done |= hopeless_N | at_limit_N
        self.decoder_NK = decoder_NKC.flatten(1).gather(1, place_NB.gather(1, chosen_NK))
        self.decoder_NK = self.decoder_NK.masked_fill(score_NK.isneginf(), -torch.inf)
        self.tokens_NKU = torch.cat([_gather(self.tokens_NKU, source_NK), token_NK[:, :, None]], dim=2)
        self.new_NKP = token_NK[:, :, None]
        stay = _staying(self.done)
        if stay is not None:
            self._select(stay)
            source_NK, token_NK = source_NK[stay], token_NK[stay]
        if len(self.rows):
            self.steps.reorder(source_NK)
            if self.ctc is not None:
                self.ctc.advance(source_NK, token_NK)

    def _extensions(self) -> tuple[Tensor, Tensor]:
        """Candidate tokens of each hypothesis, the end last, and the decoder's log-probability of what they lead to.

        As many as there are beams, and the end, hold all that can get a place, unless CTC changes the order.
        """
        logits_NKV = self.steps.step(self.new_NKP)
        total_NK1 = logits_NKV.logsumexp(2, keepdim=True)
        self.rules.apply(logits_NKV, first=self.tokens_NKU.shape[2] == 0)
        num_tokens, end = logits_NKV.shape[2], self.rules.end
        end_NK1 = logits_NKV[:, :, end, None].clone()
        logits_NKV[:, :, end] = -torch.inf
        wanted = self.config.beam if self.ctc is None else self.config.candidates or num_tokens
        logits_NKC, tokens_NKC = logits_NKV.topk(min(wanted, num_tokens - 1), dim=2)
        log_probs_NKC = torch.cat([logits_NKC, end_NK1], dim=2) - total_NK1
        return torch.nn.functional.pad(tokens_NKC, (0, 1), value=end), self.decoder_NK[:, :, None] + log_probs_NKC

    def _scores(self, tokens_NKC: Tensor, decoder_NKC: Tensor) -> Tensor:
        """s of each extension, see `beam`; the end is none of the tokens |y|."""
        score_NKC, weight = decoder_NKC, self.config.ctc_weight
        if self.ctc is not None:
            ctc_NKC = torch.cat([self.ctc.score(tokens_NKC[:, :, :-1]), self.ctc.finish()[:, :, None]], dim=2)
            score_NKC = (1 - weight) * decoder_NKC + weight * ctc_NKC
        if self.config.length_bonus:
            score_NKC = score_NKC + self.config.length_bonus * (self.tokens_NKU.shape[2] + 1)
            score_NKC[:, :, -1] -= self.config.length_bonus
        return score_NKC

    def _keep_ended(self, score_NK: Tensor, source_NK: Tensor, token_NK: Tensor) -> None:
        """The best of what was finished before and now."""
        if bool(score_NK.isneginf().all()):
            return
        new_NKU = torch.full_like(self.ended_NKU[:, : score_NK.shape[1]], self.rules.end)
        size = self.tokens_NKU.shape[2]
        new_NKU[:, :, :size], new_NKU[:, :, size] = _gather(self.tokens_NKU, source_NK), token_NK
        self.ended_NK, kept_NK = torch.cat([self.ended_NK, score_NK], dim=1).topk(self.config.beam)
        self.ended_NKU = _gather(torch.cat([self.ended_NKU, new_NKU], dim=1), kept_NK)

    def _select(self, stay: Tensor) -> None:
        """The utterances that are done and do not `stay` leave."""
        gone = torch.ones_like(self.done).index_fill_(0, stay, False).nonzero().flatten()
        for row, limit, tokens_KU, scores_K in zip(
            *(x[gone].tolist() for x in (self.rows, self.limits_N, self.ended_NKU, self.ended_NK))
        ):
            kept = [(tokens, score) for tokens, score in zip(tokens_KU, scores_K) if score > -float("inf")]
            self.found[row] = [_text(tokens, limit, self.rules.end, score) for tokens, score in kept]
        for name in ("rows", "done", "limits_N", "new_NKP", "tokens_NKU", "decoder_NK", "ended_NKU", "ended_NK"):
            setattr(self, name, getattr(self, name)[stay])
        if len(stay):
            self.steps.select(stay)
            if self.ctc is not None:
                self.ctc.select(stay)


def _staying(done: Tensor) -> Optional[Tensor]:
    """The rows that are not done, or None if it is not yet worth while to let the others go."""
    count = int(done.sum())
    if count < len(done) and count < max(1.0, _LEAVING * len(done)):
        return None
    return (~done).nonzero().flatten()


def _gather(x_NKU: Tensor, index_NK: Tensor) -> Tensor:
    return x_NKU.take_along_dim(index_NK[:, :, None], 1)


def _text(tokens: list[int], limit: int, end: int, score: Optional[float] = None) -> Scored:
    tokens = tokens[:limit]
    if end in tokens:
        return Scored(tuple(tokens[: tokens.index(end)]), score)
    return Scored(tuple(tokens), score, truncated=True)

"""A decoder whose log-probabilities are a pure function of utterance and tokens, so that all texts can be tried."""

import functools
from dataclasses import dataclass

import torch

VOCAB, END, PROMPT = 5, 2, (4, 1)


@functools.lru_cache(maxsize=None)
def log_probs(seed, tokens):
    """(V) for the token after prompt and `tokens` of the utterance `seed`."""
    generator = torch.Generator().manual_seed(hash((seed, tokens)) % (1 << 40))
    return torch.randn(VOCAB, generator=generator).mul(1.5).log_softmax(0)


@dataclass
class ToyState:
    seeds: list
    tokens_NKU: torch.Tensor
    max_tokens: int

    def reorder(self, index_NK):
        self.tokens_NKU = self.tokens_NKU.take_along_dim(index_NK[:, :, None], 1)

    def select(self, rows):
        self.seeds = [self.seeds[row] for row in rows.tolist()]
        self.tokens_NKU = self.tokens_NKU[rows]


class ToyDecoder:
    """Encoder states hold the seed of the utterance in their first number."""

    def forward(self, tokens_NU, states_NTD, lengths_N):
        rows = zip(states_NTD[:, 0, 0].long().tolist(), tokens_NU.tolist())
        return torch.stack([torch.stack([_after(s, y[: n + 1]) for n in range(len(y))]) for s, y in rows])

    __call__ = forward

    def logits(self, hidden):
        return hidden

    def start(self, states_NTD, lengths_N, max_tokens):
        seeds = states_NTD[:, 0, 0].long().tolist()
        return ToyState(seeds, torch.empty(len(seeds), 1, 0, dtype=torch.int64), max_tokens)

    def step(self, tokens_NKP, state):
        state.tokens_NKU = torch.cat([state.tokens_NKU, tokens_NKP], 2)
        assert state.tokens_NKU.shape[2] <= state.max_tokens
        rows = zip(state.seeds, state.tokens_NKU.tolist())
        return torch.stack([torch.stack([_after(seed, y) for y in texts]) for seed, texts in rows]) + 3.0


def _after(seed, tokens):
    if len(tokens) < len(PROMPT):
        return torch.zeros(VOCAB)
    assert tuple(tokens[: len(PROMPT)]) == PROMPT
    return log_probs(seed, tuple(tokens[len(PROMPT) :]))


def problem(seeds):
    """Encoder states, their lengths and the prompt of a batch."""
    states_NTD = torch.tensor(seeds, dtype=torch.float32)[:, None, None].expand(-1, 3, 2)
    return states_NTD, torch.full((len(seeds),), 3), torch.tensor(PROMPT).expand(len(seeds), -1)


def allowed(tokens, rules):
    """Log-probabilities of what may follow are taken by these tokens only."""
    forbidden = {*rules.suppress, *(() if tokens else rules.begin_suppress)}
    return [v for v in range(VOCAB) if v not in forbidden]


def all_texts(seed, limit, rules):
    """log P of every text of the utterance, as {(tokens, truncated): log P}; texts of `limit` tokens have no end."""
    found, growing = {}, {(): 0.0}
    for _ in range(limit):
        longer = {}
        for tokens, score in growing.items():
            for v in allowed(tokens, rules):
                total = score + log_probs(seed, tokens)[v].item()
                if v == rules.end:
                    found[tokens, False] = total
                else:
                    longer[(*tokens, v)] = total
        growing = longer
    return found | {(tokens, True): score for tokens, score in growing.items()}

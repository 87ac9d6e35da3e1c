"""CTC by going through all alignments, and log-probabilities to try it on."""

import itertools
import math
from collections import defaultdict

import torch


def random_log_probs(lengths, num_tokens, seed=0, sharp=1.0):
    generator = torch.Generator().manual_seed(seed)
    logits = sharp * torch.randn(len(lengths), max(lengths), num_tokens, generator=generator, dtype=torch.float64)
    return logits.log_softmax(2), torch.tensor(lengths)


def collapse(path, blank=0):
    return tuple(token for token, _ in itertools.groupby(path) if token != blank)


def all_texts(log_probs_TV, blank=0):
    """Probability of every text, by going through all alignments."""
    texts = defaultdict(float)
    for path in itertools.product(range(log_probs_TV.size(1)), repeat=len(log_probs_TV)):
        texts[collapse(path, blank)] += math.exp(sum(log_probs_TV[t, token].item() for t, token in enumerate(path)))
    return texts


def add(a, b):
    """log(exp(a) + exp(b))."""
    high, low = max(a, b), min(a, b)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))

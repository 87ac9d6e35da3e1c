import itertools
import math

import pytest
import torch
from ctc_reference import add, all_texts, random_log_probs

from moe_asr.decoding.ctc_prefix import CTCPrefixScorer


def naive(log_probs_TV, text, blank=0):
    """Score of the text as a prefix, and as a whole, frame by frame and token by token."""
    frames = len(log_probs_TV)
    n, b = [-math.inf] * (frames + 1), [0.0] + log_probs_TV[:, blank].cumsum(0).tolist()
    prefix = 0.0
    for u, token in enumerate(text):
        old_n, old_b = n, b
        n, b, prefix = [-math.inf] * (frames + 1), [-math.inf] * (frames + 1), -math.inf
        for t in range(1, frames + 1):
            into = old_b[t - 1] if u and text[u - 1] == token else add(old_b[t - 1], old_n[t - 1])
            prefix = add(prefix, into + log_probs_TV[t - 1, token].item())
            n[t] = add(n[t - 1], into) + log_probs_TV[t - 1, token].item()
            b[t] = add(b[t - 1], n[t - 1]) + log_probs_TV[t - 1, blank].item()
    return prefix, add(n[-1], b[-1])


def grow(scorer, texts_NKU):
    """The scorer after `texts_NKU`; returns its last prefix scores, and those of the whole texts."""
    prefix_NK = None
    for u, tokens_NK in enumerate(texts_NKU.unbind(2)):
        if u == 0:
            prefix_NK, index_NK = scorer.score(tokens_NK[:, None]).squeeze(1), torch.zeros_like(tokens_NK)
        else:
            prefix_NK = scorer.score(tokens_NK[:, :, None]).squeeze(2)
            index_NK = torch.arange(tokens_NK.shape[1]).expand_as(tokens_NK)
        scorer.advance(index_NK, tokens_NK)
    return prefix_NK, scorer.finish()


@pytest.mark.parametrize("blank", [0, 2])
def test_reference_equals_all_alignments(blank):
    log_probs, _ = random_log_probs([5], 3)
    texts = all_texts(log_probs[0], blank)
    for text, whole in texts.items():
        prefix = sum(p for other, p in texts.items() if other[: len(text)] == text)
        assert naive(log_probs[0], text, blank) == pytest.approx((math.log(prefix), math.log(whole)))


@pytest.mark.parametrize("blank", [0, 2])
@pytest.mark.parametrize("sharp", [1.0, 30.0])
def test_equals_the_reference_in_a_batch(blank, sharp):
    log_probs, lengths = random_log_probs([60, 7, 23, 3], 4, sharp=sharp)
    log_probs = log_probs.float()
    tokens = [v for v in range(4) if v != blank]
    texts_NKU = torch.tensor(list(itertools.product(tokens, repeat=3))).expand(4, -1, -1)
    noisy = log_probs.clone()
    for row, n in zip(noisy, lengths):
        row[n:] = torch.randn_like(row[n:]).log_softmax(1)
    for size in (0, 1, 2, 3):
        prefix_NK, whole_NK = grow(CTCPrefixScorer(noisy, lengths, blank), texts_NKU[:, :, :size])
        for n in range(4):
            for k, text in enumerate(texts_NKU[n, : whole_NK.shape[1], :size].tolist()):
                prefix, whole = naive(log_probs[n, : lengths[n]].double(), text, blank)
                assert whole_NK[n, k].item() == pytest.approx(whole, abs=1e-6)
                assert not size or prefix_NK[n, k].item() == pytest.approx(prefix, abs=1e-6)


def test_candidates_reordered_hypotheses_and_selected_utterances():
    log_probs, lengths = random_log_probs([30, 12, 9], 5)
    scorer = CTCPrefixScorer(log_probs, lengths)
    scorer.advance(torch.zeros(3, 2, dtype=torch.int64), torch.tensor([[1, 2], [3, 4], [2, 1]]))
    scorer.select(torch.tensor([2, 0]))
    scorer.advance(torch.tensor([[1, 1], [0, 1]]), torch.tensor([[1, 4], [3, 3]]))
    texts = [[(1, 1), (1, 4)], [(1, 3), (2, 3)]]
    candidates = torch.tensor([[[4, 1, 0], [2, 4, 3]], [[3, 0, 1], [1, 2, 3]]])
    score = scorer.score(candidates)
    for row, n in enumerate((2, 0)):
        for k, text in enumerate(texts[row]):
            for c, token in enumerate(candidates[row, k].tolist()):
                expected = naive(log_probs[n, : lengths[n]], (*text, token))[0] if token else -math.inf
                assert score[row, k, c].item() == pytest.approx(expected, abs=1e-9)


def test_texts_longer_than_the_audio_are_impossible_and_long_audio_stays_exact():
    log_probs, lengths = random_log_probs([2000, 2], 4, sharp=20.0)
    texts = torch.tensor([[1, 2, 3, 3, 1]]).expand(2, 1, -1)
    prefix_NK, whole_NK = grow(CTCPrefixScorer(log_probs.float(), lengths), texts)
    prefix, whole = naive(log_probs[0].float().double(), texts[0, 0].tolist())
    assert prefix_NK[0].item() == pytest.approx(prefix, abs=1e-6)
    assert whole_NK[0].item() == pytest.approx(whole, abs=1e-6)
    assert prefix_NK[1].item() == whole_NK[1].item() == -math.inf

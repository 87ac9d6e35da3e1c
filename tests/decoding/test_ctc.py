import itertools
import math
from collections import defaultdict

import pytest
import torch
from ctc_reference import add, all_texts, collapse, random_log_probs

from moe_asr.decoding.ctc import greedy, prefix_beam
from moe_asr.decoding.search_config import Scored, SearchConfig

LENGTHS = [5, 1, 0, 4, 5, 2]


def search(log_probs, lengths, config=SearchConfig()):
    if config.kind == "greedy":
        return greedy(log_probs, lengths)
    return [list(beams[0].tokens) for beams in prefix_beam(log_probs, lengths, config)]


def naive_beam(log_probs_TV, config, blank=0):
    """Prefix beam search on dictionaries, one prefix after the other."""
    beams = {(): (0.0, -math.inf)}
    for frame in log_probs_TV.tolist():
        tokens = sorted((v for v in range(len(frame)) if v != blank), key=lambda v: -frame[v])
        tokens = tokens[: config.candidates or None]
        new = defaultdict(lambda: [-math.inf, -math.inf])
        for prefix, (p_blank, p_token) in beams.items():
            new[prefix][0] = add(new[prefix][0], add(p_blank, p_token) + frame[blank])
            if prefix:
                new[prefix][1] = add(new[prefix][1], p_token + frame[prefix[-1]])
            for token in range(len(frame)):
                if token != blank and (token in tokens or (*prefix, token) in beams):
                    into = p_blank if prefix[-1:] == (token,) else add(p_blank, p_token)
                    grown = new[(*prefix, token)]
                    grown[1] = add(grown[1], into + frame[token])
        score = {prefix: add(*p) + config.length_bonus * len(prefix) for prefix, p in new.items()}
        kept = sorted((p for p in new if score[p] > -math.inf), key=lambda p: -score[p])[: config.beam]
        beams = {prefix: tuple(new[prefix]) for prefix in kept}
    found = [Scored(prefix, add(*p) + config.length_bonus * len(prefix)) for prefix, p in beams.items()]
    return sorted(found, key=lambda s: -s.score)


def assert_same(found, expected):
    assert [s.tokens for s in found] == [s.tokens for s in expected]
    assert [s.score for s in found] == pytest.approx([s.score for s in expected], abs=1e-5)


@pytest.mark.parametrize("blank", [0, 2])
def test_greedy_equals_collapse_of_the_best_alignment(blank):
    log_probs, lengths = random_log_probs([40, 1, 0, 33, 12], 4)
    expected = [list(collapse(row[:n].argmax(1).tolist(), blank)) for row, n in zip(log_probs, lengths)]
    found = greedy(log_probs, lengths, blank)
    assert found == expected and all(type(token) is int for text in found for token in text)
    assert any(a == b for text in expected for a, b in itertools.pairwise(text)), "no repetition was tried"


@pytest.mark.parametrize("blank", [0, 1])
@pytest.mark.parametrize("bonus", [0.0, 0.7, -1.0])
def test_wide_beam_gives_the_exact_probability_of_every_text(blank, bonus):
    log_probs, lengths = random_log_probs(LENGTHS, 3)
    config = SearchConfig("prefix_beam", beam=70, candidates=0, length_bonus=bonus)
    for beams, row, n in zip(prefix_beam(log_probs, lengths, config, blank), log_probs, lengths):
        exact = [Scored(y, math.log(p) + bonus * len(y)) for y, p in all_texts(row[:n], blank).items()]
        assert_same(beams, sorted(exact, key=lambda s: -s.score))


@pytest.mark.parametrize("beam, candidates", [(1, 0), (2, 1), (3, 2), (4, 0), (8, 3)])
@pytest.mark.parametrize("sharp, bonus", [(1.0, 0.0), (3.0, 0.5)])
def test_narrow_beam_equals_naive_search(beam, candidates, sharp, bonus):
    config = SearchConfig("prefix_beam", beam, candidates, bonus)
    for seed in range(3):
        log_probs, lengths = random_log_probs([25, 9, 17], 6, seed, sharp)
        for beams, row, n in zip(prefix_beam(log_probs, lengths, config), log_probs, lengths):
            assert_same(beams, naive_beam(row[:n], config))


def test_beam_search_sums_alignments_where_greedy_does_not():
    log_probs = torch.tensor([[[0.4, 0.6], [0.6, 0.4]], [[0.6, 0.4], [0.6, 0.4]]]).log()
    lengths = torch.tensor([2, 2])
    assert search(log_probs, lengths) == [[1], []]
    assert search(log_probs, lengths, SearchConfig("prefix_beam", beam=2)) == [[1], [1]]


@pytest.mark.parametrize("kind", ["greedy", "prefix_beam"])
def test_alone_equals_in_any_batch_whatever_the_padding_holds(kind):
    log_probs, lengths = random_log_probs([30, 4, 17, 0, 30], 5)
    together = search(log_probs, lengths, SearchConfig(kind))
    noisy = log_probs.clone()
    for row, n in zip(noisy, lengths):
        row[n:] = torch.randn_like(row[n:]).log_softmax(1)
    assert search(noisy, lengths, SearchConfig(kind)) == together
    for row, n, tokens in zip(log_probs, lengths, together):
        assert search(row[None, :n], n[None], SearchConfig(kind)) == [tokens]


def test_more_candidates_than_tokens_and_impossible_tokens():
    log_probs, lengths = random_log_probs([6, 6], 3)
    log_probs[:, :, 2] = -math.inf
    for beams in prefix_beam(log_probs, lengths, SearchConfig("prefix_beam", beam=50, candidates=9)):
        assert all(math.isfinite(s.score) and 2 not in s.tokens for s in beams)
        assert len({s.tokens for s in beams}) == len(beams) == 4  # (), 1, 11, 111

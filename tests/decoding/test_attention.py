import math
from types import SimpleNamespace

import pytest
import torch
from ctc_reference import all_texts as all_ctc_texts
from ctc_reference import random_log_probs
from toy_decoder import END, VOCAB, ToyDecoder, all_texts, allowed, log_probs, problem

from moe_asr.decoding.attention import TokenRules, beam, greedy
from moe_asr.decoding.ctc_prefix import CTCPrefixScorer
from moe_asr.decoding.search_config import SearchConfig
from moe_asr.decoding.steps import CachedSteps, WholePrefixSteps

SEEDS = list(range(11))
LIMITS = [4, 1, 9, 3, 12, 12, 7, 2, 12, 5, 8]
RULES = [TokenRules(END), TokenRules(END, (0,), (END, 3))]


def search(function, seeds, limits, *args, cache=True, **options):
    states_NTD, lengths_N, prompt_NP = problem(seeds)
    if cache:
        steps = CachedSteps(ToyDecoder(), states_NTD, lengths_N, prompt_NP.shape[1] + max(limits))
    else:
        steps = WholePrefixSteps(ToyDecoder(), states_NTD, lengths_N)
    return function(steps, prompt_NP, torch.tensor(limits), *args, **options)


def naive_greedy(seed, limit, rules):
    tokens = ()
    while len(tokens) < limit:
        best = max(allowed(tokens, rules), key=lambda v: log_probs(seed, tokens)[v].item())
        if best == END:
            return tokens, False
        tokens = (*tokens, best)
    return tokens, True


def naive_beam(seed, limit, rules, config):
    """The rules of `beam`, one hypothesis after the other."""
    running, ended = [((), 0.0)], []
    for length in range(1, limit + 1):
        grown = [
            ((*y, v), score + log_probs(seed, y)[v].item() + config.length_bonus * (v != END))
            for y, score in running
            for v in allowed(y, rules)
        ]
        grown = sorted(grown, key=lambda one: -one[1])[: 2 * config.beam]
        for place, (y, score) in enumerate(grown):
            if place < config.beam and (y[-1] == END or length == limit):
                ended.append((y, score / length**config.length_penalty))
        ended = sorted(ended, key=lambda one: -one[1])[: config.beam]
        running = [one for one in grown if one[0][-1] != END][: config.beam]
        if len(ended) == config.beam and (not running or running[0][1] / length**config.length_penalty <= ended[-1][1]):
            break
    return [(y[:-1] if y[-1] == END else y, y[-1] != END, score) for y, score in ended]


def assert_same(found, expected):
    assert [(one.tokens, one.truncated) for one in found] == [(tokens, cut) for tokens, cut, _ in expected]
    assert [one.score for one in found] == pytest.approx([score for *_, score in expected], abs=1e-5)


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("cache", [True, False])
def test_greedy_equals_a_naive_loop(rules, cache):
    found = search(greedy, SEEDS, LIMITS, rules, cache=cache)
    expected = [naive_greedy(seed, limit, rules) for seed, limit in zip(SEEDS, LIMITS)]
    assert [(one.tokens, one.truncated) for one in found] == expected
    assert 0 < sum(cut for _, cut in expected) < len(SEEDS) and len({len(y) for y, _ in expected}) > 3


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("penalty, bonus", [(0.0, 0.0), (1.0, 0.0), (0.6, 0.8)])
def test_wide_beam_finds_all_texts_in_order(rules, penalty, bonus):
    limits = [3, 1, 4, 2]
    config = SearchConfig("beam", beam=VOCAB**4, length_penalty=penalty, length_bonus=bonus)
    for seed, (found, limit) in enumerate(zip(search(beam, SEEDS[:4], limits, rules, config), limits)):
        texts = all_texts(seed, limit, rules)
        expected = [(y, cut, (p + bonus * len(y)) / (len(y) + (not cut)) ** penalty) for (y, cut), p in texts.items()]
        assert_same(found, sorted(expected, key=lambda one: -one[2]))


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("penalty, bonus", [(0.0, 0.0), (1.0, 0.0), (0.6, 0.8)])
@pytest.mark.parametrize("cache", [True, False])
def test_narrow_beam_equals_a_naive_search(rules, size, penalty, bonus, cache):
    config = SearchConfig("beam", beam=size, length_penalty=penalty, length_bonus=bonus)
    for seed, found in enumerate(search(beam, SEEDS, LIMITS, rules, config, cache=cache)):
        assert_same(found, naive_beam(seed, LIMITS[seed], rules, config))


@pytest.mark.parametrize("weight", [0.3, 0.8])
@pytest.mark.parametrize("penalty, bonus", [(0.0, 0.0), (1.0, 0.5)])
def test_wide_beam_with_ctc_ranks_by_both_probabilities(weight, penalty, bonus):
    log_probs_NTV, lengths = random_log_probs([6, 3, 5], VOCAB)
    rules, limit = TokenRules(END, (0,)), 4  # 0 is the blank
    config = SearchConfig("beam", VOCAB**4, 0, bonus, penalty, weight)
    scorer = CTCPrefixScorer(log_probs_NTV, lengths)
    for seed, found in enumerate(search(beam, SEEDS[:3], [limit] * 3, rules, config, scorer)):
        ctc = all_ctc_texts(log_probs_NTV[seed, : lengths[seed]])
        expected = [
            (y, False, ((1 - weight) * p + weight * math.log(ctc[y]) + bonus * len(y)) / (len(y) + 1) ** penalty)
            for (y, cut), p in all_texts(seed, limit, rules).items()
            if not cut and y in ctc
        ]
        assert len(expected) > 30 or lengths[seed] < 5
        assert_same([one for one in found if not one.truncated], sorted(expected, key=lambda one: -one[2]))


def test_ctc_helps_the_right_text_and_its_candidates_are_limited():
    log_probs_NTV = torch.full((1, 9, VOCAB), -9.0)
    for t, token in enumerate([0, 3, 3, 0, 1, 0, 3, 0, 0]):
        log_probs_NTV[0, t, token] = -1e-3
    lengths = torch.tensor([9])
    config = SearchConfig("beam", 4, 0, ctc_weight=0.9)
    rules = TokenRules(END, (0,))
    scorer = CTCPrefixScorer(log_probs_NTV, lengths)
    assert search(beam, [0], [8], rules, config, scorer)[0][0].tokens == (3, 1, 3)
    assert search(beam, [0], [8], rules, SearchConfig("beam", 4))[0][0].tokens != (3, 1, 3)
    config = SearchConfig("beam", 4, 1, ctc_weight=0.9)
    for one in search(beam, [0], [8], rules, config, CTCPrefixScorer(log_probs_NTV, lengths))[0]:
        for u, token in enumerate(one.tokens):
            others = [v for v in allowed(one.tokens[:u], rules) if v != END]
            assert token == max(others, key=lambda v: log_probs(0, one.tokens[:u])[v].item())


@pytest.mark.parametrize("ctc", [False, True])
def test_alone_equals_in_any_batch(ctc):
    log_probs_NTV, lengths = random_log_probs([9, 4, 12, 7, 20, 13, 11, 5, 9, 9, 10], VOCAB)
    rules, config = TokenRules(END, (0,)), SearchConfig("beam", 3, 2, ctc_weight=0.4 if ctc else 0.0)
    scorer = CTCPrefixScorer(log_probs_NTV, lengths) if ctc else None
    together = search(beam, SEEDS, LIMITS, rules, config, scorer)
    for seed, limit in zip(SEEDS, LIMITS):
        n = lengths[seed]
        scorer = CTCPrefixScorer(log_probs_NTV[seed : seed + 1, :n], n[None]) if ctc else None
        (alone,) = search(beam, [seed], [limit], rules, config, scorer)
        assert_same(together[seed], [(one.tokens, one.truncated, one.score) for one in alone])


@pytest.mark.parametrize("function, args", [(greedy, ()), (beam, (SearchConfig("beam", 3),))])
def test_finished_utterances_leave_the_batch_and_others_are_told(function, args):
    states_NTD, lengths_N, prompt_NP = problem(SEEDS)
    present = list(SEEDS)

    def narrow(rows):
        present[:] = [present[row] for row in rows.tolist()]
        sizes.append(len(present))

    sizes = [len(present)]
    steps = CachedSteps(ToyDecoder(), states_NTD, lengths_N, 20, SimpleNamespace(narrow=narrow))
    function(steps, prompt_NP, torch.tensor(LIMITS), RULES[0], *args)
    assert sizes == sorted(sizes, reverse=True) and len(sizes) > 3 and 1 <= sizes[-1] < 4
    assert steps._state.seeds == present

import itertools
import random

import kaldialign
import numpy as np
import pytest

from moe_asr.errors import UserError
from moe_asr.scoring.align import Counts
from moe_asr.scoring.hypotheses import Hypothesis
from moe_asr.scoring.scored import Scored, pool, score
from moe_asr.scoring.significance import Bootstrap, compare, compare_means, interval, mean_interval


def system(seed, error_rate, size=200, speakers=10, words="abcdef"):
    """The same random references for every seed, with words replaced or doubled at `error_rate`."""
    texts, noise = random.Random(7), random.Random(seed)
    hypotheses = []
    for k in range(size):
        ref = [texts.choice(words) for _ in range(texts.randint(1, 9))]
        hyp = [noise.choice(["x", word + " " + word, ""]) if noise.random() < error_rate else word for word in ref]
        hypotheses.append(Hypothesis(f"u{k}", " ".join(ref), " ".join(hyp), speaker=f"s{k % speakers}"))
    return score(hypotheses, "wer")


@pytest.mark.parametrize("unit", ["utterance", "speaker"])
def test_interval_is_that_of_a_naive_loop_with_the_same_draws(unit):
    scored = system(1, 0.2)
    by_speaker = [[x for x in scored if x.hypothesis.speaker == f"s{k}"] for k in range(10)]
    blocks = [[x] for x in scored] if unit == "utterance" else by_speaker
    generator = np.random.default_rng(5)
    rates = [
        sum((pool(blocks[b]) for b in generator.integers(0, len(blocks), size=len(blocks))), Counts()).rate
        for _ in range(200)
    ]
    found = interval(scored, Bootstrap(replications=200, unit=unit, seed=5))
    assert found == pytest.approx(np.percentile(rates, [2.5, 97.5]), rel=1e-12)


def test_interval_and_improvement_agree_with_kaldialign():
    first, second = system(1, 0.2), system(2, 0.18)
    theirs = kaldialign.bootstrap_wer_ci(
        [x.ref for x in first], [x.hyp for x in first], [x.hyp for x in second], replications=10000
    )
    low, high = interval(first, Bootstrap(replications=10000))
    width = theirs["system1"]["ci95max"] - theirs["system1"]["ci95min"]
    assert low == pytest.approx(theirs["system1"]["ci95min"], abs=0.05 * width)
    assert high == pytest.approx(theirs["system1"]["ci95max"], abs=0.05 * width)
    ours = compare(first, second, Bootstrap(replications=10000))
    assert 0.05 < theirs["p_s2_improv_over_s1"] < 0.95
    assert ours.p_improvement == pytest.approx(theirs["p_s2_improv_over_s1"], abs=0.03)


def test_speaker_interval_is_wider_when_speakers_differ():
    scored = []
    for k, rate in enumerate([0.0, 0.05, 0.1, 0.4, 0.6]):
        name = f"s{k}"
        scored += [
            Scored(Hypothesis(f"{name}-{x.id}", "", "", speaker=name), x.ref, x.hyp, x.pairs, x.counts)
            for x in system(k, rate, size=60)
        ]
    widths = [np.ptp(interval(scored, Bootstrap(unit=unit))) for unit in ("utterance", "speaker")]
    assert widths[1] > 3 * widths[0]


def test_interval_is_the_same_again_and_however_it_is_cut_into_chunks(monkeypatch):
    scored = system(1, 0.2)
    assert interval(scored, Bootstrap()) == interval(scored, Bootstrap())
    assert interval(scored, Bootstrap()) != interval(scored, Bootstrap(seed=1))
    whole = interval(scored, Bootstrap())
    monkeypatch.setattr("moe_asr.scoring.significance._CHUNK", 999)
    assert interval(scored, Bootstrap()) == whole


def test_interval_covers_the_truth_about_as_often_as_it_says():
    """95 of 100 intervals should hold the true rate; 120 binomial draws give 108 to 120 with probability 0.98."""
    covered = 0
    for seed in range(120):
        rng = np.random.default_rng(seed)
        scored = score([Hypothesis(f"u{k}", "a", "a" if rng.random() > 0.3 else "b") for k in range(150)], "wer")
        low, high = interval(scored, Bootstrap(replications=300, seed=seed))
        covered += low <= 0.3 <= high
    assert 108 <= covered <= 120


def test_too_little_to_draw_from():
    one = score([Hypothesis("a", "x y", "x", speaker="s")], "wer")
    two = one + score([Hypothesis("b", "x y", "x", speaker="s")], "wer")
    assert interval(one, Bootstrap()) is None
    assert interval(two, Bootstrap()) == (0.5, 0.5)
    assert interval(two, Bootstrap(unit="speaker")) is None
    assert interval(score([Hypothesis(k, "", "x") for k in "ab"], "wer"), Bootstrap()) is None


def test_empty_references_among_others_do_not_break_the_interval():
    scored = score([Hypothesis("a", "", "x"), Hypothesis("b", "x y", "x y")], "wer")
    low, high = interval(scored, Bootstrap())
    assert low == 0.0 and 0.5 <= high < float("inf")


def test_p_value_is_that_of_all_swaps():
    first, second = system(1, 0.3, size=12), system(2, 0.1, size=12)
    gains = [b.counts.errors - a.counts.errors for a, b in zip(first, second)]
    swaps = [sum(s * g for s, g in zip(signs, gains)) for signs in itertools.product((-1, 1), repeat=12)]
    exact = np.mean([abs(swap) >= abs(sum(gains)) for swap in swaps])
    assert 0.001 < exact < 0.5
    assert compare(first, second, Bootstrap(20000)).p_value == pytest.approx(exact, abs=0.015)


@pytest.mark.parametrize("unit", ["utterance", "speaker"])
def test_p_value_is_honest_when_nothing_differs(unit):
    """Under the null hypothesis P(p <= 0.2) is at most 0.2: 100 draws give 32 or fewer with probability 0.998."""
    values = []
    for seed in range(100):
        first, second = system(2 * seed, 0.2, size=60), system(2 * seed + 1, 0.2, size=60)
        values.append(compare(first, second, Bootstrap(300, unit=unit, seed=seed)).p_value)
    assert 5 <= sum(p <= 0.2 for p in values) <= 32


def test_comparison_of_a_clear_difference_and_its_mirror():
    worse, better = system(1, 0.4), system(2, 0.1)
    there, back = compare(worse, better, Bootstrap()), compare(better, worse, Bootstrap())
    assert there.difference == pytest.approx(pool(better).rate - pool(worse).rate, rel=1e-12)
    assert there.difference == -back.difference
    assert there.interval[0] < there.difference < there.interval[1] < 0
    assert there.p_improvement == 1 - back.p_improvement == 1.0
    assert there.p_value == back.p_value == pytest.approx(1 / 1001)
    assert there.units == 200 and compare(worse, better, Bootstrap(unit="speaker")).units == 10


def test_comparison_of_a_system_with_itself():
    scored = system(1, 0.2)
    same = compare(scored, scored[::-1], Bootstrap())
    assert (same.difference, same.interval, same.p_improvement, same.p_value) == (0.0, (0.0, 0.0), 0.5, 1.0)


def test_comparison_does_not_depend_on_the_order_of_decoding():
    first, second = system(1, 0.3), system(2, 0.2)
    assert compare(first, second, Bootstrap()) == compare(first, second[::-1], Bootstrap())


def test_comparison_refuses_what_is_not_the_same_test_set():
    first = system(1, 0.2)
    with pytest.raises(UserError, match="different utterances: 'u0' is in one alone, as are 0 others"):
        compare(first, first[1:], Bootstrap())
    with pytest.raises(UserError, match="different references for 'u0'"):
        compare(first, score([Hypothesis("u0", "other", "")], "wer") + first[1:], Bootstrap())
    empty = score([Hypothesis("a", "", "x")], "wer")
    with pytest.raises(UserError, match="all references are empty"):
        compare(empty, empty, Bootstrap())


def test_wrong_options():
    with pytest.raises(UserError, match="at least 1"):
        Bootstrap(replications=0)
    with pytest.raises(UserError, match="seed"):
        Bootstrap(seed=-1)
    with pytest.raises(UserError, match="speaker names, and utterance 'a' has none"):
        interval(score([Hypothesis("a", "x", "x")], "wer"), Bootstrap(unit="speaker"))


def groups(seed, error_rate):
    """Two groups, one of which is three times as large."""
    scored = system(seed, error_rate)
    return [scored[:50], scored[50:]]


@pytest.mark.parametrize("unit", ["utterance", "speaker"])
def test_interval_of_a_mean_is_that_of_a_naive_loop_with_the_same_draws(unit):
    found = groups(1, 0.2)
    rates = []
    for number, scored in enumerate(found):
        by_speaker = [[x for x in scored if x.hypothesis.speaker == f"s{k}"] for k in range(10)]
        blocks = [[x] for x in scored] if unit == "utterance" else by_speaker
        generator = np.random.default_rng(5 + number)
        drawn = [generator.integers(0, len(blocks), size=len(blocks)) for _ in range(200)]
        rates.append([sum((pool(blocks[b]) for b in draw), Counts()).rate for draw in drawn])
    low, high = mean_interval(found, Bootstrap(200, unit, 5))
    assert (low, high) == pytest.approx(np.percentile(np.mean(rates, 0), [2.5, 97.5]))


def test_means_are_compared_by_all_swaps():
    first, second = [groups(seed, rate) for seed, rate in ((1, 0.3), (2, 0.22))]
    first, second = [[scored[:6] for scored in system] for system in (first, second)]
    found = compare_means(first, second, Bootstrap(20000))
    means = [sum(pool(scored).rate for scored in system) / 2 for system in (first, second)]
    assert (found.first, found.second) == pytest.approx(means) and found.units == 12
    gains = [
        (b.counts.errors - a.counts.errors) / (2 * pool(one).n)
        for one, other in zip(first, second)
        for a, b in zip(one, other)
    ]
    assert sum(gains) == pytest.approx(found.difference)
    swaps = [abs(sum(s * g for s, g in zip(signs, gains))) for signs in itertools.product((-1, 1), repeat=12)]
    exact = sum(swap >= abs(sum(gains)) - 1e-12 for swap in swaps) / len(swaps)
    assert found.p_value == pytest.approx(exact, abs=0.02)


def test_a_group_of_one_unit_and_one_without_reference():
    few = [system(1, 0.3)[:1], system(1, 0.3)[:0]]
    assert mean_interval(few, Bootstrap(50)) is None
    found = compare_means(few, few, Bootstrap(50))
    assert found.interval is None and found.p_value == 1.0
    with pytest.raises(UserError, match="all references are empty"):
        compare_means(few[1:], few[1:], Bootstrap(50))


def test_of_one_group_it_is_the_pooled_comparison():
    first, second = system(1, 0.3), system(2, 0.2)
    one, pooled = compare_means([first], [second], Bootstrap(100)), compare(first, second, Bootstrap(100))
    assert one.interval == pytest.approx(pooled.interval) and one.p_value == pooled.p_value
    assert mean_interval([first], Bootstrap(100)) == pytest.approx(interval(first, Bootstrap(100)))

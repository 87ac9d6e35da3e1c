import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_asr.data.plan import BatchPlan
from moe_asr.errors import UserError

DURATIONS = np.clip(np.random.default_rng(0).lognormal(1.4, 0.5, 5000), 0.5, 30).tolist()


def padded(batches, durations):
    return sum(max(durations[i] for i in batch) * len(batch) for batch in batches)


@settings(max_examples=50, deadline=None)
@given(
    durations=st.lists(st.floats(0.1, 20.0), min_size=1, max_size=80),
    num_buckets=st.integers(1, 12),
    factors=st.sampled_from([(1.0,), (0.9, 1.0, 1.1), (0.5,)]),
    shuffle=st.booleans(),
    most=st.integers(0, 9),
    epoch=st.integers(0, 5),
)
def test_each_utterance_once_and_no_batch_too_long(durations, num_buckets, factors, shuffle, most, epoch):
    plan = BatchPlan(durations, 40.0, num_buckets, 3, shuffle, factors, max_utterances=most)
    batches, played = plan.epoch(epoch), durations / plan.speeds(epoch)
    assert Counter(i for batch in batches for i in batch) == Counter(range(len(durations)))
    assert all(max(played[i] for i in batch) * len(batch) <= 40.0 * (1 + 1e-9) for batch in batches)
    assert all(0 < len(batch) <= (most or len(durations)) for batch in batches)


def test_an_epoch_depends_on_nothing_but_its_number():
    first = BatchPlan(DURATIONS, 60.0, seed=5, speed_factors=(0.9, 1.1))
    second = BatchPlan(DURATIONS, 60.0, seed=5, speed_factors=(0.9, 1.1))
    expected = [first.epoch(k) for k in range(3)]
    assert [second.epoch(k) for k in (2, 0, 1)] == [expected[2], expected[0], expected[1]]
    assert np.array_equal(first.speeds(1), second.speeds(1))


def test_epochs_and_seeds_differ():
    plan = BatchPlan(DURATIONS, 60.0, seed=5, speed_factors=(0.9, 1.0, 1.1))
    other = BatchPlan(DURATIONS, 60.0, seed=6, speed_factors=(0.9, 1.0, 1.1))
    assert plan.epoch(0) != plan.epoch(1) and plan.epoch(0) != other.epoch(0)
    assert not np.array_equal(plan.speeds(0), plan.speeds(1))
    # not the same batches in another order either: an utterance meets new ones
    together = [{frozenset(batch) for batch in plan.epoch(k)} for k in (0, 1)]
    assert len(together[0] & together[1]) < 0.01 * len(together[0])


def test_order_is_random_not_by_length():
    plan = BatchPlan(DURATIONS, 60.0)
    mean = [float(np.mean([DURATIONS[i] for i in batch])) for batch in plan.epoch(0)]
    assert abs(np.corrcoef(mean, range(len(mean)))[0, 1]) < 0.15


@pytest.mark.parametrize("max_duration", [60.0, 300.0])
def test_little_padding(max_duration):
    for factors in [(1.0,), (0.9, 1.0, 1.1)]:
        plan = BatchPlan(DURATIONS, max_duration, speed_factors=factors)
        played = (DURATIONS / plan.speeds(0)).tolist()
        assert padded(plan.epoch(0), played) / sum(played) <= 1.05
    no_buckets = BatchPlan(DURATIONS, max_duration, num_buckets=1)
    assert padded(no_buckets.epoch(0), DURATIONS) / sum(DURATIONS) > 1.5


def test_batches_are_full():
    batches = BatchPlan(DURATIONS, 60.0).epoch(0)
    assert sum(DURATIONS) / (60.0 * len(batches)) > 0.85


def test_without_shuffling_longest_first():
    plan = BatchPlan([1.0, 3.0, 2.0, 3.0, 0.5], 6.0, shuffle=False)
    assert plan.epoch(0) == plan.epoch(7) == [[1, 3], [2, 0, 4]]


def test_batches_of_so_many_utterances():
    batches = BatchPlan(DURATIONS, 1e6, num_buckets=1, max_utterances=8).epoch(0)
    assert sorted(len(batch) for batch in batches) == [8] * 625
    assert BatchPlan([1.0, 3.0, 2.0, 3.0, 0.5], 6.0, shuffle=False, max_utterances=2).epoch(0) == [[1, 3], [2, 0], [4]]


def test_speeds_are_drawn_evenly():
    counts = Counter(BatchPlan(DURATIONS, 60.0, speed_factors=(0.9, 1.0, 1.1)).speeds(0).tolist())
    assert set(counts) == {0.9, 1.0, 1.1} and min(counts.values()) > 0.3 * len(DURATIONS)


def test_a_full_batch_is_not_split_by_rounding():
    assert BatchPlan([0.1] * 10, 0.1 * 10, shuffle=False).epoch(0) == [list(range(10))]


@pytest.mark.parametrize(
    "durations, keywords, message",
    [
        ([], {}, "no utterances"),
        ([1.0, 70.0, 65.0], {}, "2 of 3 utterances are longer than max_duration 60 s .the longest 70.0 s"),
        ([58.0], {"speed_factors": (0.9,)}, "the longest 64.4 s"),
        ([1.0], {"num_buckets": 0}, "num_buckets must be at least 1"),
        ([1.0], {"speed_factors": (0.0,)}, "speed_factors positive"),
        ([1.0], {"max_utterances": -1}, "max_utterances is -1; it must be at least 1, or 0 for no limit"),
    ],
)
def test_what_cannot_be_planned_is_refused(durations, keywords, message):
    with pytest.raises(UserError, match=message):
        BatchPlan(durations, 60.0, **keywords)


def test_large_corpora_are_planned_fast():
    durations = np.random.default_rng(0).uniform(1, 20, 200_000)
    begin = time.process_time()
    BatchPlan(durations, 600.0, speed_factors=(0.9, 1.0, 1.1)).epoch(1000)
    assert time.process_time() - begin < 2.0  # 0.2 s; what is slow here takes minutes

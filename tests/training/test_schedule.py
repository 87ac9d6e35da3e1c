import math

import pytest

from moe_asr.errors import UserError
from moe_asr.training.schedule import ScheduleConfig, learning_rate_factor


@pytest.mark.parametrize(
    ("kind", "expected"),
    [  # warm-up over 4 updates, end at 12: the values at updates 1, 4, 8, 12 and 100
        ("constant", [0.25, 1, 1, 1, 1]),
        ("linear", [0.25, 1, 0.55, 0.1, 0.1]),
        ("cosine", [0.25, 1, 0.55, 0.1, 0.1]),
        ("inverse_sqrt", [0.25, 1, math.sqrt(1 / 2), math.sqrt(1 / 3), 0.2]),
    ],
)
def test_values(kind, expected):
    schedule = ScheduleConfig(kind, warmup_steps=4, decay_steps=12, final_factor=0.1)
    assert [learning_rate_factor(s, schedule) for s in (1, 4, 8, 12, 100)] == pytest.approx(expected, abs=1e-15)


def test_cosine_between_its_ends():
    schedule = ScheduleConfig("cosine", warmup_steps=0, decay_steps=3)
    assert learning_rate_factor(1, schedule) == pytest.approx(0.75)
    assert learning_rate_factor(2, schedule) == pytest.approx(0.25)


def test_inverse_sqrt_is_the_transformers():
    """lr = d^-0.5 min(s^-0.5, s W^-1.5) (Vaswani et al. 2017), up to its peak value."""
    schedule = ScheduleConfig("inverse_sqrt", warmup_steps=7)
    for step in range(1, 60):
        paper = min(step**-0.5, step * 7**-1.5)
        assert learning_rate_factor(step, schedule) == pytest.approx(paper / 7**-0.5)


def test_open_length_is_given_by_the_run():
    schedule = ScheduleConfig("linear", warmup_steps=2)
    assert schedule.needs_length and not ScheduleConfig("linear", decay_steps=9).needs_length
    assert learning_rate_factor(6, schedule, decay_steps=10) == 0.5
    assert learning_rate_factor(3, schedule, decay_steps=1) == 0.0  # a run that ends within its warm-up


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "inverse_sqrt"])
def test_factor_of_each_epoch_goes_with_every_shape(kind):
    plain = ScheduleConfig(kind, warmup_steps=4, decay_steps=12, final_factor=0.1)
    falling = ScheduleConfig(kind, warmup_steps=4, decay_steps=12, final_factor=0.1, epoch_factor=0.9)
    for step in (1, 4, 7, 12, 30):
        for epoch, factor in enumerate([1, 0.9, 0.81, 0.729]):
            assert learning_rate_factor(step, falling, epoch=epoch) == pytest.approx(
                factor * learning_rate_factor(step, plain, epoch=epoch), rel=1e-15
            )
            assert learning_rate_factor(step, plain, epoch=epoch) == learning_rate_factor(step, plain)


@pytest.mark.parametrize("factor", [0.0, -0.9, math.nan])
def test_bad_factor_of_each_epoch(factor):
    with pytest.raises(UserError, match="epoch_factor is .* must be above 0"):
        ScheduleConfig(epoch_factor=factor)


@pytest.mark.parametrize(
    "bad", [{"warmup_steps": -1}, {"kind": "inverse_sqrt"}, {"kind": "linear", "warmup_steps": 5, "decay_steps": 5}]
)
def test_bad_values(bad):
    with pytest.raises(UserError, match="steps"):
        ScheduleConfig(**bad)

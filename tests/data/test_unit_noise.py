"""Noise does what its probabilities say, sequence by sequence."""

import json

import numpy as np
import pytest

from moe_asr.data.unit_noise import NoiseConfig, UnitNoise
from moe_asr.errors import UserError

KINDS = ["[-]", "[a]", "[b]", "[c]", "[d]"]


def noisy(units, offsets=None, seed=0, **settings):
    units = np.asarray(units)
    offsets = np.array([0, len(units)]) if offsets is None else np.asarray(offsets)
    return UnitNoise(NoiseConfig(**settings), KINDS)(units, offsets, np.random.default_rng(seed))[:2]


def test_no_noise_changes_nothing():
    units, offsets = noisy([1, 2, 3, 9], [0, 1, 1, 4])
    assert units.tolist() == [1, 2, 3, 9] and offsets.tolist() == [0, 1, 1, 4]


def test_the_same_seed_gives_the_same_noise():
    settings = dict(substitute=0.2, drop=0.1, repeat=3, blank=0.3)
    one, again, other = (noisy(np.arange(500) % 4 + 1, seed=seed, **settings)[0].tolist() for seed in (1, 1, 2))
    assert one == again != other


def test_repeats_and_blanks_keep_the_order():
    units, _ = noisy(np.arange(4000) % 4 + 1, repeat=3, blank=0.25)
    runs = [(kind, len(list(run))) for kind, run in _runs(units)]
    assert [kind for kind, _ in runs if kind] == (np.arange(4000) % 4 + 1).tolist()
    blanks = sum(kind == 0 for kind, _ in runs)
    assert abs(blanks / 4000 - 0.25) < 0.03 and all(length == 1 for kind, length in runs if not kind)
    lengths = np.bincount([length for kind, length in runs if kind], minlength=4)[1:]
    assert len(lengths) == 3 and np.abs(lengths / 4000 - 1 / 3).max() < 0.03


def test_as_many_blanks_as_told_each_number_equally_often():
    units, _ = noisy(np.arange(6000) % 4 + 1, blank=0.5, blanks=3)
    lengths = np.bincount([len(list(run)) for kind, run in _runs(units) if not kind], minlength=4)[1:]
    assert len(lengths) == 3 and np.abs(lengths / 6000 - 0.5 / 3).max() < 0.02
    assert units[units > 0].tolist() == (np.arange(6000) % 4 + 1).tolist()
    assert NoiseConfig(blank=0.5, blanks=3, repeat=2).longest == 5


def _runs(units):
    from itertools import groupby

    return groupby(units.tolist())


def test_each_sequence_keeps_its_own():
    units = np.repeat([1, 2, 3], 300)
    found, offsets = noisy(units, [0, 300, 600, 900], drop=0.3, repeat=2, blank=0.2)
    assert offsets[0] == 0 and offsets[-1] == len(found)
    for n, kind in enumerate((1, 2, 3)):
        assert set(found[offsets[n] : offsets[n + 1]].tolist()) == {0, kind}


def test_drops_as_often_as_told():
    found, _ = noisy(np.ones(5000, dtype=int), drop=0.3)
    assert abs(len(found) / 5000 - 0.7) < 0.03


def test_substitutes_are_other_units_all_equally_often():
    found, _ = noisy(np.ones(9000, dtype=int), substitute=0.3)
    shares = np.bincount(found, minlength=5) / 9000
    assert shares[0] == 0 and np.abs(shares[1:] - [0.7, 0.1, 0.1, 0.1]).max() < 0.02


def test_units_that_are_not_known_are_left():
    assert noisy([7, 7, 7], substitute=1.0)[0].tolist() == [7, 7, 7]


def test_a_unit_without_others_stays():
    assert UnitNoise(NoiseConfig(substitute=1.0), KINDS[:2])(
        np.ones(3, int), np.array([0, 3]), np.random.default_rng(0)
    )[0].tolist() == [1, 1, 1]


def test_a_table_says_what_becomes_of_a_unit(tmp_path):
    path = tmp_path / "confusions.json"
    path.write_text(json.dumps({"[a]": {"[b]": 3, "[c]": 1}}))
    found, _ = noisy(np.repeat([1, 4], 4000), substitute=1.0, confusions=str(path))
    shares = np.bincount(found[:4000], minlength=5) / 4000
    assert np.abs(shares - [0, 0, 0.75, 0.25, 0]).max() < 0.03
    assert set(found[4000:].tolist()) == {1, 2, 3}


def test_bad_tables_and_probabilities(tmp_path):
    path = tmp_path / "confusions.json"
    for text in ("[a] [b]", '["[a]"]', '{"[a]": {"[b]": -1}}', '{"[a]": {"[b]": "often"}}'):
        path.write_text(text)
        with pytest.raises(UserError, match="is no table of confusions"):
            noisy([1], confusions=str(path))
    path.write_text('{"[x]": {"[b]": 1}}')
    with pytest.raises(UserError, match=r"the training data has no unit \[x\]"):
        noisy([1], confusions=str(path))
    for settings in ({"substitute": 0.6, "drop": 0.5}, {"blank": 1.1}, {"drop": -0.1}):
        with pytest.raises(UserError, match="are probabilities"):
            NoiseConfig(**settings)
    for name in ("repeat", "blanks"):
        with pytest.raises(UserError, match=f"{name} is 0"):
            NoiseConfig(**{name: 0})

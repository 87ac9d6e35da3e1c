import numpy as np
import pytest

from moe_asr.data.segments import FRAME, SegmentConfig, cut, frame_samples, levels, threshold
from moe_asr.errors import UserError

RATE = 16000
CONFIG = SegmentConfig()


def db(value):
    return 10 ** (value / 20)


def noise(seconds, level=-60.0, seed=0, rate=RATE):
    return (db(level) * np.random.default_rng(seed).standard_normal(round(seconds * rate))).astype(np.float32)


def speech(seconds, level=-20.0, rate=RATE):
    """A buzz whose loudness goes up and down four times a second, by 20 dB, as syllables do."""
    time = np.arange(round(seconds * rate)) / rate
    buzz = sum(np.sin(2 * np.pi * 150 * k * time + k * k) for k in range(1, 20)) / 3
    return (db(level) * buzz * db(-20 * np.square(np.sin(np.pi * 4 * time)))).astype(np.float32)


def signal(*parts, rate=RATE):
    """Speech, or silence for negative numbers, of so many seconds, in noise."""
    sound = np.concatenate([speech(p, rate=rate) if p > 0 else np.zeros(round(-p * rate)) for p in parts])
    return sound.astype(np.float32) + noise(len(sound) / rate, rate=rate)


def seconds(pieces):
    return [(round(start * FRAME, 2), round(end * FRAME, 2)) for start, end in pieces]


def found(samples, longest=20.0, config=CONFIG, rate=RATE):
    return seconds(cut(levels(samples, rate), longest, config))


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100])
def test_a_level_is_that_of_a_naive_transform(rate):
    samples, W = noise(0.5, -20, rate=rate) + 0.3, frame_samples(rate)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(W) / W)
    expected = []
    for start in range(0, len(samples), W):
        frame = np.zeros(W)
        frame[: len(samples[start : start + W])] = samples[start : start + W]
        power = 0.0
        for k in range(W // 2 + 1):
            if 150 <= k * rate / W <= 4000:
                power += abs(np.sum(window * frame * np.exp(-2j * np.pi * k * np.arange(W) / W))) ** 2
        expected.append(10 * np.log10(2 * power / (W * np.sum(window**2))))
    np.testing.assert_allclose(levels(samples, rate), expected, atol=2e-3)


def test_levels_of_known_signals():
    time = np.arange(RATE) / RATE
    tone = levels(np.sin(2 * np.pi * 1000 * time).astype(np.float32), RATE)
    np.testing.assert_allclose(tone, -3.01, atol=0.05)
    assert levels(np.sin(2 * np.pi * 50 * time).astype(np.float32), RATE).max() < -60, "hum"
    assert levels(np.full(RATE, 0.5, np.float32), RATE).max() < -60, "a constant"
    np.testing.assert_allclose(levels(np.zeros(RATE, np.float32), RATE), -120, atol=1e-3)
    assert len(levels(np.zeros(321, np.float32), RATE)) == 2 and len(levels(np.zeros(0, np.float32), RATE)) == 0


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_cuts_at_silences_and_leaves_padding(rate):
    pieces = found(signal(-1, 2, -1, 3, -0.3, 1, -2, rate=rate), rate=rate)
    expected = [(0.8, 3.2), (3.8, 8.5)]  # 0.3 s are no silence
    assert np.abs(np.array(pieces) - expected).max() < 0.1


def test_a_short_gap_is_shared_by_its_neighbours():
    pieces = found(signal(-1, 2, -0.3, 2, -1), config=SegmentConfig(min_silence=0.2))
    assert len(pieces) == 2 and pieces[0][1] == pieces[1][0] == pytest.approx(3.15, abs=0.06)


@pytest.mark.parametrize("samples", [
    np.zeros(5 * RATE, np.float32), noise(5, -95), noise(60, -60), noise(60, -30), noise(60, -12),
    np.sin(2 * np.pi * 440 * np.arange(5 * RATE) / RATE).astype(np.float32),
    np.zeros(1, np.float32), speech(0.08),
])  # fmt: skip
def test_no_piece_where_nobody_speaks(samples):
    assert found(samples) == []


def test_clicks_are_not_speech_but_short_words_are():
    click, word = noise(6), noise(6)
    click[RATE * 3 : RATE * 3 + 200] += 0.5
    word[RATE * 3 : RATE * 3 + 4000] += speech(0.25)
    assert found(click) == []
    assert np.abs(np.array(found(word)) - [(2.8, 3.45)]).max() < 0.05


@pytest.mark.parametrize("level", [-20, -35, -50])
def test_quiet_recordings_are_cut_like_loud_ones(level):
    loud = signal(-1, 2, -1, 3, -1)
    assert found(loud * np.float32(db(level + 20))) == found(loud)


def test_the_threshold_follows_the_noise():
    """A quiet room for a minute, then a loud one; speech is 15 dB above the noise in both."""
    parts = []
    for number, level in enumerate([-45] * 12 + [-15] * 12):
        parts.append(noise(5, level - 15, number))
        parts[-1][RATE : 4 * RATE] += speech(3, level)
    pieces = np.array(found(np.concatenate(parts)))
    own = pieces[np.abs(pieces[:, 0] - 60) > 16]  # in the half minute around the change some noise is taken for speech
    for start, end in own:
        assert start % 5 == pytest.approx(0.8, abs=0.15) and end % 5 == pytest.approx(4.2, abs=0.15)
    assert len(own) >= 16
    covered = np.zeros(24 * 5 * 50, bool)
    for start, end in pieces:
        covered[round(start * 50) : round(end * 50)] = True
    for number in range(24):
        assert covered[number * 250 + 60 : number * 250 + 190].all()


def test_speech_without_a_pause_is_cut_at_its_quietest_points_and_nothing_is_lost():
    sound = signal(-1, 60, -1)
    dips = [8.0, 15.0, 22.0, 29.0, 36.0, 43.0, 50.0]
    for dip in dips:  # quieter for 0.3 s, but far above the noise
        sound[round((dip - 0.15) * RATE) : round((dip + 0.15) * RATE)] *= db(-12)
    pieces = found(sound, longest=10.0)
    assert (pieces[0][0], pieces[-1][1]) == pytest.approx((0.8, 61.2), abs=0.1)
    cuts = [end for _, end in pieces[:-1]]
    assert cuts == [start for start, _ in pieces[1:]]
    assert max(end - start for start, end in pieces) <= 10.0 + 1e-9 and min(end - start for start, end in pieces) > 2.4
    assert len(cuts) == 8 and np.abs(np.array(cuts[:7]) - dips).max() < 0.15


@pytest.mark.parametrize("seed", range(20))
def test_all_that_is_loud_lies_in_a_piece(seed):
    rng = np.random.default_rng(seed)
    parts = rng.choice([1, -1], 30) * rng.exponential(1.5, 30).clip(0.05)
    sound, longest = signal(*parts), rng.uniform(0.5, 8)
    config = SegmentConfig(rng.uniform(0, 1), 0.0, rng.uniform(0, 0.5))
    levels_T = levels(sound, RATE)
    pieces = cut(levels_T, longest, config)
    inside = np.zeros(len(levels_T), int)
    for start, end in pieces:
        assert 0 <= start < end <= len(levels_T) and (end - start) * FRAME <= longest + 1e-9
        inside[start:end] += 1
    assert inside.max() == 1, "pieces overlap"
    assert inside[levels_T > threshold(levels_T, config)].all()
    assert pieces == sorted(pieces)
    assert inside.mean() < 1, "silence is left out"


@pytest.mark.parametrize("name", ["min_silence", "padding", "floor"])
def test_bad_settings(name):
    with pytest.raises(UserError, match=f"segments: {name} must not be negative"):
        SegmentConfig(**{name: -0.1})

"""Where a recording is cut: at its silences, and where there is none for too long, at its quietest point.

Silence is told from speech by level alone, with a threshold that follows the noise; what is steady, however loud, is
noise. This needs no model and knows no language. The other side of it: music and bursts of noise are kept.

Shape letters: T frames of `FRAME` seconds, S samples, W samples in a frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moe_asr.errors import UserError

FRAME = 0.02
SHORTEST = 0.1  # seconds of a recording below which nothing in it is taken for speech
_BAND = (150.0, 4000.0)  # Hz: without hum below, and hiss above
_LOWEST = -120.0  # dB: digital silence
_WINDOW, _STEP = 30.0, 10.0  # seconds over which, and from which to which, the noise is looked at
_AROUND = 5  # frames on both sides of one that are looked at for a cut in speech
_NOISE, _SPEECH = 10, 95  # percentiles of the levels in a window


@dataclass(frozen=True)
class SegmentConfig:
    """What counts as silence, and how long pieces may be.

    Args:
        min_silence: shorter pauses, in seconds, are not cut at
        min_speech: what has no more seconds of sound between two silences is a click and left out
        padding: seconds of silence left on both sides of a piece
        above_noise: least decibels that speech is above the noise
        floor: decibels below full scale under which all is silence
        range: decibels below the loudest speech under which all is silence
    """

    min_silence: float = 0.5
    min_speech: float = 0.06
    padding: float = 0.2
    above_noise: float = 3.0
    floor: float = 70.0
    range: float = 45.0

    def __post_init__(self):
        for name in ("min_silence", "min_speech", "padding", "above_noise", "floor", "range"):
            if not getattr(self, name) >= 0:
                raise UserError(f"segments: {name} must not be negative, but is {getattr(self, name)}")


def frame_samples(sample_rate: int) -> int:
    """W, samples in a frame."""
    return max(1, round(FRAME * sample_rate))


def levels(samples_S: np.ndarray, sample_rate: int) -> np.ndarray:
    """Energy of each frame between 150 and 4000 Hz, levels_T in dB: a sine wave of full scale has -3.

    level = 10 log10 (2 / (W sum(w^2)) sum_k |DFT(w * frame)[k]|^2) with a Hann window w; the last frame is filled up
    with zeros.
    """
    W = frame_samples(sample_rate)
    T = -(-len(samples_S) // W)
    frames_TW = np.pad(samples_S, (0, T * W - len(samples_S))).reshape(T, W)
    window_W = np.hanning(W + 1)[:W].astype(np.float32)
    spectrum_TK = np.fft.rfft(frames_TW * window_W, axis=1)
    frequency_K = np.fft.rfftfreq(W, 1 / sample_rate)
    inside_K = (frequency_K >= _BAND[0]) & (frequency_K <= _BAND[1])
    power_T = 2 / (W * np.square(window_W).sum()) * np.square(np.abs(spectrum_TK[:, inside_K])).sum(1)
    return 10 * np.log10(np.maximum(power_T, 10 ** (_LOWEST / 10)))


def threshold(levels_T: np.ndarray, config: SegmentConfig) -> np.ndarray:
    """The level in dB above which a frame is speech, threshold_T.

        max(-floor, loudest - range, noise_t + max(above_noise, 0.2 (speech_t - noise_t)))

    noise_t and speech_t are the 10th and the 95th percentile in the half minute around t, the loudest is that
    percentile of all; digital silence is left out of them.
    """
    heard_T = levels_T > _LOWEST + 20
    if not heard_T.any():
        return np.full(len(levels_T), -config.floor)
    window, step = round(_WINDOW / FRAME), round(_STEP / FRAME)
    centres, values = [], []
    for centre in range(min(window, len(levels_T)) // 2, max(len(levels_T) - window // 2, 0) + step, step):
        begin = min(max(0, centre - window // 2), max(0, len(levels_T) - window))
        part = levels_T[begin : begin + window][heard_T[begin : begin + window]]
        if len(part):
            centres.append(begin + window // 2)
            values.append(np.percentile(part, (_NOISE, _SPEECH)))
    noise, speech = np.array(values).T
    own = noise + np.maximum(config.above_noise, 0.2 * (speech - noise))
    least = max(-config.floor, np.percentile(levels_T[heard_T], _SPEECH) - config.range)
    return np.maximum(least, np.interp(np.arange(len(levels_T)), centres, own))


def cut(levels_T: np.ndarray, max_seconds: float, config: SegmentConfig) -> list[tuple[int, int]]:
    """Pieces with speech in them, as (first frame, frame after the last), in order and without overlap.

    All frames above the threshold are inside a piece, but for clicks.

    Args:
        max_seconds: no piece is longer; where there is no silence it is cut at its quietest point in the second half
            of the time that is left, and nothing is lost there
    """
    if len(levels_T) * FRAME < SHORTEST - 1e-9:
        return []
    pieces = []
    longest = max(1, int(max_seconds / FRAME + 1e-6))
    around_T = _smooth(levels_T)
    for start, end in _padded(_runs(levels_T > threshold(levels_T, config), config), len(levels_T), config):
        while end - start > longest:
            # what is left after the last cut is no tiny rest either
            low, high = start + (longest + 1) // 2, min(start + longest, end - longest // 4)
            place = _quietest(levels_T, around_T, low, high) if high > low else start + longest
            pieces.append((start, place))
            start = place
        pieces.append((start, end))
    return pieces


def _runs(speech_T: np.ndarray, config: SegmentConfig) -> list[tuple[int, int]]:
    """Stretches of speech with `min_silence` between them, clicks left out."""
    edges = np.flatnonzero(np.diff(speech_T.astype(np.int8), prepend=0, append=0))
    runs: list[tuple[int, int, int]] = []  # start, end, frames of sound between them
    for start, end in edges.reshape(-1, 2).tolist():
        if runs and (start - runs[-1][1]) * FRAME < config.min_silence - 1e-9:
            first, _, sound = runs.pop()
            runs.append((first, end, sound + end - start))
        else:
            runs.append((start, end, end - start))
    return [(start, end) for start, end, sound in runs if sound * FRAME > config.min_speech + 1e-9]


def _padded(runs: list[tuple[int, int]], num_frames: int, config: SegmentConfig) -> list[tuple[int, int]]:
    """The runs with silence around them, half of what is between two at most."""
    padding = round(config.padding / FRAME)
    middles = [0, *((one[1] + other[0]) // 2 for one, other in zip(runs, runs[1:])), num_frames]
    return [
        (max(before, start - padding), min(after, end + padding))
        for (start, end), before, after in zip(runs, middles, middles[1:])
    ]


def _quietest(levels_T: np.ndarray, around_T: np.ndarray, low: int, high: int) -> int:
    """From low to high, the quietest frame of the quietest fifth of a second."""
    middle = low + int(around_T[low : high + 1].argmin())
    low, high = max(low, middle - _AROUND), min(high, middle + _AROUND)
    return low + int(levels_T[low : high + 1].argmin())


def _smooth(levels_T: np.ndarray) -> np.ndarray:
    """The level of a fifth of a second around each frame."""
    width = 2 * _AROUND + 1
    power_T = np.pad(10 ** (levels_T / 10), _AROUND, mode="edge")
    return 10 * np.log10(np.convolve(power_T, np.ones(width) / width, mode="valid"))

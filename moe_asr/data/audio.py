"""Reading audio: WAV, FLAC, Ogg (Opus, Vorbis), MP3, SPHERE and what else libsndfile reads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr

from moe_asr.data.manifests import Utterance
from moe_asr.errors import UserError

LOUDEST = 100.0  # times full scale, from which on floating-point samples are no sound


def load_audio(utterance: Utterance, sample_rate: int, speed: float = 1.0) -> np.ndarray:
    """Samples of one utterance: float32 of shape [S], in [-1, 1].

    Change of rate and speed perturbation are one resampling from `speed * rate of the file` to `sample_rate`; this
    takes half the time of lhotse's chain of two, and names what is wrong with a file.

    Args:
        sample_rate: In Hz.
        speed: Above 1 is faster, shorter and higher, as `sox speed`.

    Raises:
        UserError: the file is missing, cannot be read, or is no longer the one in the manifest.
    """
    expected = round(utterance.seconds * utterance.sample_rate)
    start = round(utterance.start * utterance.sample_rate)
    try:
        with open_audio(utterance.audio) as file:
            if (file.channels, file.samplerate) != (1, utterance.sample_rate):
                raise ValueError(f"{file.channels} channels at {file.samplerate} Hz, not 1 at {utterance.sample_rate}")
            if start:  # libmpg123 loses its bits of earlier frames when told to seek, also to where it is
                file.seek(start)
            samples = file.read(expected, dtype="float32")
        if len(samples) != expected:
            raise ValueError(f"{len(samples)} samples from sample {start} on, where the manifest has {expected}")
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"cannot read utterance {utterance.id} from {utterance.audio}: {why(error)}; prepare the data again"
        ) from None
    return resample(samples, utterance.sample_rate * speed, sample_rate)


def open_audio(path: str) -> soundfile.SoundFile:
    """Opens an audio file.

    Raises:
        OSError, RuntimeError, ValueError: it cannot be read; `why` puts each into words.
    """
    if not Path(path).is_file():
        raise FileNotFoundError("no such file")
    if Path(path).stat().st_size == 0:
        raise ValueError("the file is empty")
    return soundfile.SoundFile(os.fsencode(path))  # soundfile encodes no name that is not UTF-8


def mono_blocks(file: soundfile.SoundFile, size: int, total: int | None = None) -> Iterator[np.ndarray]:
    """The next `total` samples, all by default, in blocks of `size`, averaged over channels.

    `soundfile`'s own blocks go by the length in the header, and end with whatever was in memory where less comes.
    """
    # soundfile seeks to where it is after each read, upon which libmpg123 loses its bits of earlier frames and says so
    file.seekable = lambda: False
    left = float("inf") if total is None else total
    while left > 0:
        block_SC = file.read(int(min(size, left)), dtype="float32", always_2d=True)
        if not len(block_SC):
            return
        left -= len(block_SC)
        yield block_SC[:, 0] if block_SC.shape[1] == 1 else block_SC.mean(1)


def why(error: Exception) -> str:
    """What an error of reading audio says, in a few words and without the path."""
    return str(getattr(error, "error_string", error)).rstrip(".")


def resample(samples: np.ndarray, from_rate: float, to_rate: float) -> np.ndarray:
    """Band-limited resampling of [S]; keeps the type."""
    return samples if from_rate == to_rate else soxr.resample(samples, from_rate, to_rate)

"""Recordings as people have them: of any length, sample rate and number of channels, read in blocks.

A recording is read twice: once for its levels, from which the places to cut it are found, and once for the pieces. So
memory holds one piece of it at a time, however long it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moe_asr.data.audio import LOUDEST, mono_blocks, open_audio, resample, why
from moe_asr.data.probe import missing_bytes
from moe_asr.data.segments import frame_samples, levels
from moe_asr.errors import UserError

SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".sph")
_LEAST_RATE = 1000  # samples a second; below, nothing is left of the band in which speech is looked for
_BLOCK = 50  # frames read at a time; where a file breaks off, what comes before it in its block is lost


@dataclass(frozen=True)
class Recording:
    """What a file holds.

    Args:
        levels_T: of its frames, see `levels`
        problem: what is wrong with it although it can be read; empty for nothing
    """

    path: Path
    num_samples: int
    sample_rate: int
    levels_T: np.ndarray
    problem: str = ""

    @property
    def seconds(self) -> float:
        """Its duration."""
        return self.num_samples / self.sample_rate

    def time(self, frame: int) -> float:
        """Where a frame begins, in seconds; the end of the recording for all after it."""
        return min(frame * frame_samples(self.sample_rate), self.num_samples) / self.sample_rate


def find_recordings(paths: Sequence[str]) -> dict[Path, Path]:
    """Files, and the audio files in folders and the folders in them, in order, each once.

    Returns:
        for each its path from the folder that was named, or its name.

    Raises:
        UserError: one of `paths` is not there, or is a folder without audio files.
    """
    found: dict[Path, Path] = {}
    for name in paths:
        path = Path(name)
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            files = [p for p in files if not p.name.startswith(".")]
            if not files:
                raise UserError(f"no audio in {path}: looked for files that end in {', '.join(SUFFIXES)}")
        elif path.exists():
            files = [path]
        else:
            raise UserError(f"no such file or folder: {path}")
        for file in files:
            found.setdefault(file, file.relative_to(path) if path.is_dir() else Path(file.name))
    return found


def declared_seconds(path: Path) -> float:
    """What the header says, at once; 0 for a file that cannot be read."""
    try:
        with open_audio(str(path)) as file:
            return file.frames / file.samplerate
    except (OSError, RuntimeError, ValueError):
        return 0.0


def read_levels(path: Path) -> Recording:
    """Reads a file to its end. One that breaks off is a recording with a `problem`, of what there is.

    Raises:
        UserError: it is missing, empty, no audio, without samples, or holds samples that are no numbers.
    """
    parts, num_samples = [], 0
    try:
        problem = missing_bytes(str(path))
        with open_audio(str(path)) as file:
            rate, declared = file.samplerate, file.frames
            if rate < _LEAST_RATE:
                raise UserError(f"{path}: {rate} samples a second are too few for speech")
            try:
                for block_S in mono_blocks(file, _BLOCK * frame_samples(rate)):
                    if not np.abs(block_S).max() <= LOUDEST:  # NaN as well
                        raise UserError(
                            f"{path}: holds samples that are no numbers (NaN or infinite), or over {LOUDEST:g}"
                        )
                    num_samples += len(block_S)
                    parts.append(levels(block_S, rate))
            except RuntimeError as error:
                problem = problem or why(error)
    except UserError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as audio: {why(error)}") from None
    if num_samples == 0:
        raise UserError(f"{path}: holds no samples" + (f" ({problem})" if problem else ""))
    if not problem and num_samples < declared:
        problem = f"{num_samples} of {declared} samples"
    return Recording(path, num_samples, rate, np.concatenate(parts), f"breaks off: {problem}" if problem else "")


def read_pieces(recording: Recording, pieces: Sequence[tuple[int, int]], sample_rate: int) -> Iterator[np.ndarray]:
    """Samples of each piece, channels averaged and resampled: float32 of shape [S], in [-1, 1].

    Args:
        pieces: (first frame, frame after the last), in order and without overlap.
        sample_rate: In Hz.

    Raises:
        UserError: the file has changed since its levels were read.
    """
    rate, size = recording.sample_rate, frame_samples(recording.sample_rate)
    try:
        with open_audio(str(recording.path)) as file:
            place = 0  # counted, for not all formats seek to the sample
            for first, last in pieces:
                start, end = first * size, min(last * size, recording.num_samples)
                for block_S in mono_blocks(file, _BLOCK * size, start - place):
                    place += len(block_S)
                samples_S = np.concatenate([*mono_blocks(file, _BLOCK * size, end - start), np.zeros(0, np.float32)])
                place += len(samples_S)
                if file.samplerate != rate or place != end:
                    raise ValueError("it has changed since it was looked at")
                yield resample(samples_S, rate, sample_rate)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{recording.path}: cannot be read: {why(error)}") from None

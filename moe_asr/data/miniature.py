"""Speech for miniature corpora: artificial speakers who say short sentences of few words.

It has the shape of a corpus and nothing more; the voices are those of espeak-ng.
"""

from __future__ import annotations

import itertools
import multiprocessing
import random
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moe_asr.data.audio import resample
from moe_asr.data.espeak import Synthesiser

SAMPLE_RATE = 16000
_VARIANTS = "m1 m2 m3 m5 m7 f1 f2 f3 f4 f5".split()
_WORDS = ("two three four five", "red blue green old", "birds cats cows trees", "sing run sleep wait")


def sentences(count: int, seed: str) -> list[str]:
    """Random sentences of four words, such as `three green birds sing`."""
    generator = random.Random(seed)
    return [" ".join(generator.choice(words.split()) for words in _WORDS) for _ in range(count)]


@dataclass(frozen=True)
class Voice:
    """How somebody speaks; see `Synthesiser.speak`.

    Args:
        stretch: Factor on all frequencies and on the pace, which stands for the length of the vocal tract.
    """

    voice: str
    variant: str
    rate: int
    pitch: int
    range: int = 50
    stretch: float = 1.0


def random_voice(name: str, voice: str = "en-us") -> Voice:
    """A voice of the language `voice`, the same for the same name."""
    generator = random.Random(name)
    return Voice(voice, generator.choice(_VARIANTS), generator.randint(160, 220), generator.randint(25, 75))


def speak(
    lines: Mapping[str, Sequence[str]], num_jobs: int = 1, voices: Mapping[str, Voice] | None = None
) -> dict[str, list[np.ndarray]]:
    """What each speaker says: for every line float32 samples [S] at 16 kHz, the same for any number of jobs.

    Args:
        lines: By the name of the speaker.
        voices: By the name of the speaker; None for a random English one of each name.
    """
    speakers = [(name, texts, voices[name] if voices else random_voice(name)) for name, texts in lines.items()]
    # a fresh process for each speaker, because espeak-ng remembers what it said before
    with multiprocessing.get_context("fork").Pool(num_jobs, maxtasksperchild=1) as pool:
        return dict(zip(lines, pool.imap(_speak, speakers)))


def _speak(speaker: tuple[str, Sequence[str], Voice]) -> list[np.ndarray]:
    name, lines, voice = speaker
    synthesiser = Synthesiser(seed=zlib.crc32(name.encode()))
    noise = np.random.default_rng(zlib.crc32(name.encode()))
    spoken = []
    for text in lines:
        samples, rate = synthesiser.speak(text, voice.voice, voice.variant, voice.rate, voice.pitch, voice.range)
        samples = resample(samples, rate * voice.stretch, SAMPLE_RATE)
        # of faint noise all the same: no recording is digitally silent
        spoken.append((0.5 * samples + noise.normal(0, 1e-3, samples.shape)).astype(np.float32))
    return spoken


def pieces(texts: Sequence[str], count: int) -> list[list[str]]:
    """The texts in `count` runs of about the same length."""
    size = -(-len(texts) // count)
    iterator = iter(texts)
    return [list(itertools.islice(iterator, size)) for _ in range(count)]

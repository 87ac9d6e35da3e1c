"""Accents as systematic changes of Mandarin syllables, after what distinguishes real sub-dialects, much simplified."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Accent:
    """How an accent differs from the standard.

    Args:
        changes: Pattern and replacement, applied to every syllable without its tone, one after another.
        tones: What tones 1 to 4 become.
        pace: Factor on the speaker's.
        range: Of the pitch, 0 to 100.
    """

    changes: tuple[tuple[str, str], ...] = ()
    tones: str = "1234"
    pace: float = 1.0
    range: int = 50


ACCENTS = {
    "Mandarin": Accent(),
    # no retroflex consonants, l for n, no velar nasal after e and i; Chengdu's tones
    "Southwestern": Accent(
        changes=(("^([zcs])h", r"\1"), ("^n", "l"), ("([ei])ng$", r"\1n")), tones="1342", pace=0.9, range=35
    ),
    # palatal for retroflex consonants, no r; tones of the Shandong peninsula
    "Jiao-Liao": Accent(
        changes=(("^sh(?=[ae])", "xi"), ("^ch(?=[ae])", "qi"), ("^([xq]i)e(?=ng)", r"\1"), ("^chi$", "qi"),
                 ("^ren", "yin"), ("^r(?=[eo])", "y")),
        tones="3414", pace=1.1, range=70,
    ),
    # l for n, f for hu, velar nasal after o alone; Nanjing's tones
    "Jiang-Huai": Accent(changes=(("^n", "l"), ("^hu", "f"), ("([aei])ng$", r"\1n")), tones="4231", range=50),
}  # fmt: skip


def pronounce(pinyin: Sequence[str], accent: Accent) -> str:
    """What espeak-ng is to say for syllables with the numbers of their tones; the neutral tone, 5, stays."""
    spoken = []
    for syllable in pinyin:
        sound, tone = syllable[:-1], int(syllable[-1])
        for pattern, replacement in accent.changes:
            sound = re.sub(pattern, replacement, sound)
        spoken.append(f"{sound}{accent.tones[tone - 1] if tone < 5 else tone}")
    return " ".join(spoken)

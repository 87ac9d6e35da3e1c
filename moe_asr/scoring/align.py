"""Tokens, alignment and error counts: one aligner for word, character and mixed error rates.

    rate = (S + D + I) / N

with S substitutions, D deletions and I insertions in a Levenshtein alignment of N reference tokens.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import kaldialign

Metric = Literal["wer", "cer", "mer"]
Pair = tuple[str | None, str | None]

# Scripts in which a character, not what stands between spaces, is the token of the mixed error rate: Han, Kana, Hangul,
# Bopomofo and Yi with their punctuation and full- or half-width forms. Full-width Latin letters and digits form words.
_CJK = (
    "\u1100-\u11ff\u2e80-\u2fdf\u3001-\ua4cf\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\ufe30-\ufe4f"
    "\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uffdc\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
_MIXED = re.compile(f"[{_CJK}]|[^\\s{_CJK}]+")
_GAP = -1


def tokenise(text: str, metric: Metric) -> list[str]:
    """Splits text into the tokens that `metric` counts.

    - wer: what stands between white space;
    - cer: every character but white space;
    - mer: every Han, Kana or Hangul character, and what stands between these and white space as one word.

    Text is brought to Unicode form NFC first, so that "é" is one character however it was typed. A combining mark that
    has no composed form (Arabic vowel signs, most Indic ones) stays a character of its own, as is usual for the cer.
    """
    text = unicodedata.normalize("NFC", text)
    if metric == "wer":
        return text.split()
    if metric == "cer":
        return [character for character in text if not character.isspace()]
    assert metric == "mer", metric
    return _MIXED.findall(text)


@dataclass(frozen=True)
class Counts:
    """Pooled error counts; add them up over utterances, `sum(counts, Counts())`.

    Args:
        n: reference tokens
        s: substitutions
        d: deletions
        i: insertions
    """

    n: int = 0
    s: int = 0
    d: int = 0
    i: int = 0

    @property
    def errors(self) -> int:
        return self.s + self.d + self.i

    @property
    def correct(self) -> int:
        return self.n - self.s - self.d

    @property
    def rate(self) -> float | None:
        """(s + d + i) / n as a fraction, above 1 where insertions abound; None without any reference token."""
        return self.errors / self.n if self.n else None

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.n + other.n, self.s + other.s, self.d + other.d, self.i + other.i)

    def to_dict(self) -> dict:
        """The four counts, `errors` and `rate`, for JSON."""
        return {**asdict(self), "errors": self.errors, "rate": self.rate}


def align(ref: Sequence[str], hyp: Sequence[str]) -> list[Pair]:
    """Levenshtein alignment as (ref, hyp) pairs: (None, hyp) is an insertion, (ref, None) a deletion.

    Tokens are numbered before they are aligned, so no token, not even "*", can be mistaken for a gap.
    """
    number: dict[str, int] = {}
    pairs = kaldialign.align(
        [number.setdefault(token, len(number)) for token in ref],
        [number.setdefault(token, len(number)) for token in hyp],
        _GAP,
    )
    tokens: list[str | None] = [*number, None]  # _GAP is the last one
    return [(tokens[r], tokens[h]) for r, h in pairs]


def count(pairs: Iterable[Pair]) -> Counts:
    """Error counts of one alignment."""
    n = s = d = i = 0
    for ref, hyp in pairs:
        n += ref is not None
        i += ref is None
        d += hyp is None
        s += None not in (ref, hyp) and ref != hyp
    return Counts(n, s, d, i)

"""Signs of hallucination: words out of nowhere, phrases that loop, transcripts far longer than what was said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moe_asr.scoring.scored import Scored, pool

LOOP = 4  # times in a row from which on a phrase counts as looping
LONG_FACTOR = 2  # a hypothesis is much longer if it has at least this many times the tokens of the reference
LONG_MARGIN = 5  # and at least this many tokens more


@dataclass(frozen=True)
class Hallucination:
    """What was found, with the ids of the utterances to look at.

    Args:
        insertion_rate: insertions per reference token; None without any reference token
        looping: the hypothesis repeats a phrase at least 4 times in a row, and more often than the reference does
        much_longer: at least twice as many tokens as the reference, and at least 5 more
        empty: nothing recognised although something was said
    """

    insertion_rate: float | None
    looping: list[str]
    much_longer: list[str]
    empty: list[str]


def find_hallucination(scored: Sequence[Scored]) -> Hallucination:
    """Goes through all utterances; cheap for those without loops."""
    counts = pool(scored)
    return Hallucination(
        insertion_rate=counts.i / counts.n if counts.n else None,
        looping=[x.id for x in scored if LOOP <= repeats(x.hyp) > repeats(x.ref)],
        much_longer=[x.id for x in scored if len(x.hyp) >= max(LONG_FACTOR * len(x.ref), len(x.ref) + LONG_MARGIN)],
        empty=[x.id for x in scored if x.ref and not x.hyp],
    )


def repeats(tokens: Sequence[str]) -> int:
    """How many times in a row a phrase of any length comes at most; 1 if none comes twice in a row, 0 of nothing.

    A phrase of length n that comes r times in a row is a run of (r - 1) n positions with tokens[k] == tokens[k + n].
    """
    most = min(len(tokens), 1)
    n = 1
    while n * (most + 1) <= len(tokens):  # longer phrases do not fit in often enough to matter
        run = 0
        for k in range(len(tokens) - n):
            run = run + 1 if tokens[k] == tokens[k + n] else 0
            most = max(most, run // n + 1)
        n += 1
    return most

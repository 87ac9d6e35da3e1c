"""The text files of a score, under icefall's names: `recogs-<set>.txt` and `errs-<set>.txt`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TextIO

from moe_asr.scoring.align import Counts, Metric, Pair
from moe_asr.scoring.scored import Scored, by_unit, pool


def write_recogs(file: TextIO, scored: Iterable[Scored]) -> None:
    """Tokens of reference and hypothesis, two lines an utterance, sorted by id."""
    file.writelines(
        f"{one.id}:\tref={one.ref}\n{one.id}:\thyp={one.hyp}\n" for one in sorted(scored, key=lambda x: x.id)
    )


def write_errs(file: TextIO, scored: Sequence[Scored]) -> None:
    """Rate by unit, every alignment, and which tokens are confused, lost, invented, and how often each was right."""
    scored = sorted(scored, key=lambda x: x.id)
    pairs = [pair for one in scored for pair in one.pairs]
    counts, gap = pool(scored), _gap_sign(pairs)
    file.writelines(f"{rate_line(pool(members), unit)}\n" for unit, members in by_unit(scored).items())
    file.write(f"Errors: {counts.i} insertions, {counts.d} deletions, {counts.s} substitutions, ")
    file.write(f"over {counts.n} reference tokens ({counts.correct} correct)\n")
    file.write("Search below for sections starting with ")
    file.write("PER-UTT DETAILS:, SUBSTITUTIONS:, DELETIONS:, INSERTIONS:, PER-WORD STATS:\n")

    file.write(f"\nPER-UTT DETAILS: corr or (ref->hyp), {gap} for nothing\n")
    file.writelines(f"{one.id}:\t{alignment_line(one.pairs, gap)}\n" for one in scored)

    subs = Counter(f"{r} -> {h}" for r, h in pairs if None not in (r, h) and r != h)
    _write_section(file, "SUBSTITUTIONS: count ref -> hyp", subs)
    _write_section(file, "DELETIONS: count ref", Counter(r for r, h in pairs if h is None))
    _write_section(file, "INSERTIONS: count hyp", Counter(h for r, h in pairs if r is None))
    _write_words(file, pairs)


def rate_line(counts: Counts, metric: Metric) -> str:
    """`%WER 12.34% [11 / 89, 2 ins, 3 del, 6 sub ]`, with `n/a` where there is no reference token."""
    rate = "n/a" if counts.rate is None else f"{counts.rate:.2%}"
    totals = f"{counts.errors} / {counts.n}, {counts.i} ins, {counts.d} del, {counts.s} sub"
    return f"%{metric.upper()} {rate} [{totals} ]"


def alignment_line(pairs: Sequence[Pair], gap: str) -> str:
    """`the (cat->hat sat) on (a->*) mat`: correct tokens, and neighbouring errors in one bracket."""
    parts = []
    for correct, run in groupby(pairs, key=lambda pair: pair[0] == pair[1]):
        refs, hyps = zip(*run)
        ref = " ".join(token for token in refs if token is not None)
        hyp = " ".join(token for token in hyps if token is not None)
        parts.append(ref if correct else f"({ref or gap}->{hyp or gap})")
    return " ".join(parts)


def _gap_sign(pairs: Sequence[Pair]) -> str:
    """`*` as in icefall, with as many more as it takes not to look like a real token."""
    tokens = {token for pair in pairs for token in pair}
    gap = "*"
    while gap in tokens:
        gap += "*"
    return gap


def _write_section(file: TextIO, title: str, counter: Counter) -> None:
    file.write(f"\n{title}\n")
    file.writelines(
        f"{times}   {name}\n" for name, times in sorted(counter.items(), key=lambda item: (-item[1], item[0]))
    )


def _write_words(file: TextIO, pairs: Sequence[Pair]) -> None:
    correct = Counter(r for r, h in pairs if r == h)
    in_ref = Counter(r for r, _ in pairs if r is not None)
    in_hyp = Counter(h for _, h in pairs if h is not None)
    errors = in_ref + in_hyp - correct - correct
    file.write("\nPER-WORD STATS: word  corr tot_errs count_in_ref count_in_hyp\n")
    file.writelines(
        f"{word}   {correct[word]} {errors[word]} {in_ref[word]} {in_hyp[word]}\n"
        for word in sorted(in_ref | in_hyp, key=lambda word: (-errors[word], word))
    )

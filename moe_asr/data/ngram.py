"""n-gram models of words: a bigram learned from texts, and any model in the ARPA format as an acceptor of words."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from moe_asr.data.lines import parse_number, read_lines
from moe_asr.data.text import normalise
from moe_asr.errors import UserError

BEGIN, END = "<s>", "</s>"
BACKOFF = "#0"
NGrams = dict[tuple[str, ...], tuple[float, float]]
"""For each n-gram the natural logarithms of P(last word | words before) and of its back-off weight."""


def learn_bigram(texts: Iterable[str], words: Iterable[str]) -> NGrams:
    """Interpolated Kneser-Ney bigram (Ney, Essen and Kneser 1994, in the form of Chen and Goodman 1998).

        P(w | v) = max(c(v w) - d, 0) / c(v .) + d n(v .) / c(v .) P(w)
        P(w) = max(n(. w) - d, 0) / n(. .) + d n(.) / n(. .) / |words and </s>|

    c counts, n counts different bigrams (n(.) words that end one), d = n_1 / (n_1 + 2 n_2) from the bigrams seen once
    and twice.

    Args:
        texts: sentences; bigrams with others than `words` are left out
        words: all words that may occur

    Raises:
        UserError: there is nothing to learn from.
    """
    targets = [*words, END]
    known = {*targets, BEGIN}
    sentences = ([BEGIN, *text.split(), END] for text in texts)
    counts = Counter(pair for s in sentences for pair in zip(s, s[1:]) if known.issuperset(pair))
    if not counts:
        raise UserError("no words to learn a language model from: the texts are empty, or their words unknown")
    seen = Counter(counts.values())
    d = seen[1] / (seen[1] + 2 * seen[2]) if seen[1] and seen[2] else 0.5
    total = Counter()
    for (v, _), count in counts.items():
        total[v] += count
    before, after = Counter(w for _, w in counts), Counter(v for v, _ in counts)
    spread = d * len(before) / len(counts) / len(targets)
    p = {w: max(before[w] - d, 0) / len(counts) + spread for w in targets}
    backoff = {v: d * after[v] / total[v] if total[v] else 1.0 for v in (*targets, BEGIN)}
    ngrams = {(w,): (math.log(p[w]), math.log(backoff[w])) for w in targets}
    ngrams[BEGIN,] = (-math.inf, math.log(backoff[BEGIN]))
    for (v, w), count in counts.items():
        ngrams[v, w] = (math.log((count - d) / total[v] + backoff[v] * p[w]), 0.0)
    return ngrams


def read_arpa(path: str | Path, normaliser: str = "none") -> NGrams:
    """Reads an ARPA file, perhaps gzipped.

    Args:
        normaliser: applied to its words, which must stay words; of those that become equal the first counts

    Raises:
        UserError: there is no such file, it is cut off or holds not what its head says, or a line cannot be read.
    """
    if not Path(path).is_file():
        raise UserError(f"no language model at {path}: expected a file in the ARPA format")
    ngrams: NGrams = {}
    forms = {BEGIN: BEGIN, END: END}
    order = 0
    promised: dict[str, str] = {}
    found: Counter[str] = Counter()
    for number, line in enumerate(read_lines(path), 1):
        line = line.strip()
        if line.startswith("\\") and line.endswith("-grams:"):
            if line != f"\\{order + 1}-grams:":
                raise UserError(f"{path}:{number}: expected \\{order + 1}-grams:, got '{line}'")
            order += 1
        elif line.startswith("\\end\\"):
            wrong = next((n for n, count in promised.items() if count != str(found[n])), None)
            if not order or wrong:
                what = f"{found[wrong]} {wrong}-grams, but its head says {promised[wrong]}" if wrong else "no n-grams"
                raise UserError(f"{path} holds {what}: fetch it again")
            return ngrams
        elif not order and line.startswith("ngram ") and "=" in line:
            n, _, count = line.removeprefix("ngram ").partition("=")
            promised[n.strip()] = count.strip()
        elif order and line:
            fields = line.split()
            if not order < len(fields) < order + 3:
                raise UserError(f"{path}:{number}: expected a probability and {order} words, got '{line}'")
            for word in fields[1 : order + 1]:
                if word not in forms:
                    forms[word] = normalise(normaliser, word)
            key = tuple(forms[word] for word in fields[1 : order + 1])
            backoff = fields[order + 1] if len(fields) > order + 1 else "0"
            found[str(order)] += 1
            try:
                ngrams.setdefault(key, (_log(fields[0]), _log(backoff)))
            except ValueError:
                raise UserError(f"{path}:{number}: '{fields[0]}' and '{backoff}' must be numbers") from None
    raise UserError(f"{path} is no ARPA file, or is cut off: it has no line \\end\\")


def _log(log10: str) -> float:
    """The natural logarithm; some programs write -inf for never."""
    return -math.inf if log10 == "-inf" else parse_number(log10) * math.log(10)


def acceptor(ngrams: NGrams, words: Mapping[str, int]) -> Iterator[str]:
    """The model as an acceptor of word ids: lines of OpenFst's text format.

    A state is a history, and an arc an n-gram; what a history has not seen is reached through an arc `BACKOFF` to the
    history without its first word (as Kaldi's arpa2fst does). Costs are -log P.

    Args:
        words: ids of all words, with `BACKOFF`; n-grams of others are left out
    """
    kept = {key: value for key, value in ngrams.items() if all(w in words or w in (BEGIN, END) for w in key)}
    order = max(map(len, kept), default=1)
    contexts = {key[:-1] for key in kept} | {key for key, (_, b) in kept.items() if b and len(key) < order} | {()}
    contexts -= {key for key in contexts if END in key}
    start = (BEGIN,) if (BEGIN,) in contexts else ()
    states = {key: i for i, key in enumerate([start, *sorted(contexts - {start})])}
    arcs, finals = defaultdict(list), {}
    for key, (log_p, _) in kept.items():
        source, word = key[:-1], key[-1]
        if word == END and source in states:
            finals[source] = log_p
        elif word in words and source in states:
            arcs[source].append((_longest(key, states), words[word], log_p))
    for source in states:
        if source:
            arcs[source].append((_longest(source[1:], states), words[BACKOFF], kept.get(source, (0.0, 0.0))[1]))
    for source, i in states.items():  # the first state named is where it begins
        for target, word, log_p in arcs[source]:
            yield f"{i} {states[target]} {word} {-log_p:.6f}"
    for source, log_p in finals.items():
        yield f"{states[source]} {-log_p:.6f}"


def _longest(key: tuple[str, ...], states: Mapping[tuple[str, ...], int]) -> tuple[str, ...]:
    """The longest end of `key` that is a state."""
    while key not in states:
        key = key[1:]
    return key

import gzip
import math
from collections import defaultdict

import pytest

from moe_asr.data.ngram import acceptor, learn_bigram, read_arpa
from moe_asr.errors import UserError

TEXTS = ["the cat sat", "the dog sat on the cat", "a dog", "the cat", "a cat sat"]
WORDS = ["the", "cat", "sat", "dog", "on", "a", "never"]
IDS = {word: i for i, word in enumerate([*WORDS, "#0"], 1)}

TRIGRAM = """
\\data\\
ngram 1=5
ngram 2=5
ngram 3=2

\\1-grams:
-99 <s> -0.3
-0.9 </s>
-0.5 the -0.2
-0.7\tcat\t-0.1
-1.1 foreign -0.4

\\2-grams:
-0.2 <s> the
-0.3 the cat -0.25
-0.4 cat </s>
-0.8 cat the -0.35
-0.6 foreign cat -0.7

\\3-grams:
-0.1 <s> the cat
-0.05 the cat </s>

\\end\\
"""


def log_p(ngrams, history, word):
    """The definition of a back-off model, in natural logarithms."""
    if (*history, word) in ngrams:
        return ngrams[(*history, word)][0]
    return ngrams.get(history, (0.0, 0.0))[1] + log_p(ngrams, history[1:], word)


def sentence(ngrams, words, order):
    before = ("<s>",)
    total = 0.0
    for word in [*words, "</s>"]:
        history = before[-(order - 1) :] if order > 1 else ()
        total += log_p(ngrams, history, word)
        before += (word,)
    return total


def walk(lines, words, ids):
    """-cost of a sentence in an acceptor, an arc by back-off only where there is no other."""
    arcs, finals = defaultdict(dict), {}
    for line in lines:
        first, *rest = line.split()
        if len(rest) == 1:
            finals[first] = float(rest[0])
        else:
            assert rest[1] not in arcs[first], "two arcs of one word"
            arcs[first][rest[1]] = rest[0], float(rest[2])
    state, cost, wanted = "0", 0.0, [str(ids[word]) for word in words]
    while wanted or state not in finals:
        label = wanted.pop(0) if wanted and wanted[0] in arcs[state] else str(ids["#0"])
        state, more = arcs[state][label]
        cost += more
    return -(cost + finals[state])


def test_bigram_is_the_formula():
    counts = defaultdict(int)
    for text in TEXTS:
        s = ["<s>", *text.split(), "</s>"]
        for i in range(len(s) - 1):
            counts[s[i], s[i + 1]] += 1
    once, twice = (sum(c == n for c in counts.values()) for n in (1, 2))
    d = once / (once + 2 * twice)
    ngrams = learn_bigram(TEXTS, WORDS)
    targets = [*WORDS, "</s>"]
    ends = {w for _, w in counts}
    for v in ["<s>", *WORDS]:
        seen = {w: c for (u, w), c in counts.items() if u == v}
        total = 0.0
        for w in targets:
            p1 = max(sum(x == w for _, x in counts) - d, 0) / len(counts) + d * len(ends) / len(counts) / len(targets)
            share = d * len(seen) / sum(seen.values()) if seen else 1.0
            p = share * p1 + (max(seen.get(w, 0) - d, 0) / sum(seen.values()) if seen else 0.0)
            assert log_p(ngrams, (v,), w) == pytest.approx(math.log(p))
            total += p
        assert total == pytest.approx(1.0)


def test_words_outside_the_vocabulary_are_left_out():
    ngrams = learn_bigram(["a strange cat", "a cat"], ["a", "cat"])
    assert {word for key in ngrams for word in key} == {"a", "cat", "<s>", "</s>"}
    assert sum(math.exp(log_p(ngrams, ("a",), w)) for w in ("a", "cat", "</s>")) == pytest.approx(1.0)


@pytest.mark.parametrize("texts, words", [(["very strange"], ["a"]), ([], ["a"])])
def test_nothing_to_learn_from(texts, words):
    with pytest.raises(UserError, match="no words to learn"):
        learn_bigram(texts, words)


@pytest.mark.parametrize("text", [*TEXTS, "never", "on on never the dog", ""])
def test_acceptor_of_a_bigram(text):
    ngrams = learn_bigram(TEXTS, WORDS)
    assert walk(acceptor(ngrams, IDS), text.split(), IDS) == pytest.approx(sentence(ngrams, text.split(), 2), abs=1e-4)


@pytest.mark.parametrize("text", ["the cat", "cat", "the the cat", "", "the cat cat the", "cat the the"])
def test_acceptor_of_a_trigram_from_an_arpa_file(tmp_path, text):
    (tmp_path / "lm.arpa").write_text(TRIGRAM)
    ngrams = read_arpa(tmp_path / "lm.arpa")
    assert ngrams["the", "cat"] == pytest.approx((-0.3 * math.log(10), -0.25 * math.log(10)))
    ids = {"the": 1, "cat": 2, "#0": 3}
    lines = list(acceptor(ngrams, ids))
    assert walk(lines, text.split(), ids) == pytest.approx(sentence(ngrams, text.split(), 3), abs=1e-4)


def test_words_of_an_arpa_file_are_normalised_and_it_may_be_gzipped(tmp_path):
    with gzip.open(tmp_path / "lm.arpa.gz", "wt") as file:
        file.write(TRIGRAM.replace("cat", "CAT").replace("the", "The"))
    (tmp_path / "lower.arpa").write_text(TRIGRAM)
    assert read_arpa(tmp_path / "lm.arpa.gz", "english") == read_arpa(tmp_path / "lower.arpa")


@pytest.mark.parametrize(
    "text, message",
    [
        (TRIGRAM.replace("\\end\\", ""), "cut off"),
        ("", "no ARPA file"),
        (TRIGRAM.replace("-0.3 the cat -0.25", "-0.3 the"), r"lm.arpa:16: expected a probability and 2 words"),
        (TRIGRAM.replace("-0.3 the cat", "x the cat"), "'x' and '-0.25' must be numbers"),
        (TRIGRAM.replace("\\2-grams", "\\x-grams"), r"lm.arpa:14: expected .2-grams:, got '.x-grams:'"),
        (TRIGRAM.replace("\\1-grams", "\\0-grams"), r"lm.arpa:7: expected .1-grams:, got '.0-grams:'"),
    ],
)
def test_damaged_files_are_one_line(tmp_path, text, message):
    (tmp_path / "lm.arpa").write_text(text)
    with pytest.raises(UserError, match=message):
        read_arpa(tmp_path / "lm.arpa")


def test_files_cut_off_or_in_another_encoding_are_one_line(tmp_path):
    (tmp_path / "lm.arpa.gz").write_bytes(gzip.compress(TRIGRAM.encode())[:-20])
    with pytest.raises(UserError, match="lm.arpa.gz is damaged or cut off"):
        read_arpa(tmp_path / "lm.arpa.gz")
    (tmp_path / "lm.arpa").write_bytes(TRIGRAM.replace("cat", "caf\u00e9").encode("latin-1"))
    with pytest.raises(UserError, match="lm.arpa:11: not UTF-8"):
        read_arpa(tmp_path / "lm.arpa")


def test_missing_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no language model at"):
        read_arpa(tmp_path / "lm.arpa")

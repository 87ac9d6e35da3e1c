import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_asr.scoring.hallucination import Hallucination, find_hallucination, repeats
from moe_asr.scoring.hypotheses import Hypothesis
from moe_asr.scoring.scored import score


def naive_repeats(tokens):
    most = min(len(tokens), 1)
    for start in range(len(tokens)):
        for n in range(1, len(tokens) - start + 1):
            times = 1
            while tokens[start + times * n : start + (times + 1) * n] == tokens[start : start + n]:
                times += 1
            most = max(most, times)
    return most


@given(st.lists(st.sampled_from("abc"), max_size=14))
def test_repeats_is_that_of_trying_everything(tokens):
    assert repeats(tokens) == naive_repeats(tokens)


@pytest.mark.parametrize(
    "text, times",
    [("", 0), ("a", 1), ("a b", 1), ("a a b", 2), ("x a b a b a b a b y", 4), ("a b a b c a b a b", 2)],
)
def test_repeats_of_known_cases(text, times):
    assert repeats(text.split()) == times


def find(*pairs):
    return find_hallucination(score([Hypothesis(f"u{k}", ref, hyp) for k, (ref, hyp) in enumerate(pairs)], "wer"))


def test_clean_decode():
    assert find(("a b c", "a b c"), ("", "")) == Hallucination(0.0, [], [], [])


def test_loops_count_only_where_the_reference_has_none():
    found = find(
        ("so we go home", "so we so we so we so we"),
        ("five five five five", "five five five five"),
        ("five five five five", "five five five five five"),
        ("no no no", "no no no no"),
        ("a a a", "a a a"),
    )
    assert found.looping == ["u0", "u2", "u3"]


def test_length_and_emptiness():
    found = find(
        ("a", "a b c d e"),
        ("a", "a b c d e f"),
        ("a b c d e f", "a a b b c c d d e e f"),
        ("a", ""),
        ("", ""),
        ("", "a b c d e"),
    )
    assert found.much_longer == ["u1", "u5"]
    assert found.empty == ["u3"]


def test_insertion_rate():
    assert find(("a b", "a x y b z")).insertion_rate == 1.5
    assert find(("", "a")).insertion_rate is None

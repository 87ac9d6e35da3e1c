import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from moe_asr.scoring.align import Counts, align, count, tokenise

LATIN = st.characters(categories=("Lu", "Ll", "Nd", "Zs"), max_codepoint=0x24F)
HAN = st.one_of(st.characters(min_codepoint=0x4E00, max_codepoint=0x9FFF), st.sampled_from(" 　𠀀㐀々。，！ \n"))
KANA = st.one_of(st.characters(min_codepoint=0x3041, max_codepoint=0x30FF), st.sampled_from(" ｱ한"))
tokens = st.lists(st.sampled_from(["a", "b", "c", "*", "<eps>", ""]), max_size=9)


def distance(ref, hyp):
    """Levenshtein distance from its recursive definition, row by row."""
    row = list(range(len(hyp) + 1))
    for r in range(1, len(ref) + 1):
        above, row = row, [r]
        for h in range(1, len(hyp) + 1):
            row.append(min(above[h] + 1, row[h - 1] + 1, above[h - 1] + (ref[r - 1] != hyp[h - 1])))
    return row[-1]


@given(tokens, tokens)
@example(["*"], []).via("a token that other scorers use for gaps")
@example([], ["*"]).via("the same, inserted")
@example([], []).via("nothing at all")
def test_alignment_is_shortest_and_holds_both_sides(ref, hyp):
    pairs = align(ref, hyp)
    counts = count(pairs)
    assert [r for r, _ in pairs if r is not None] == ref
    assert [h for _, h in pairs if h is not None] == hyp
    assert (None, None) not in pairs
    assert counts.errors == distance(ref, hyp)
    assert counts.n == len(ref) and counts.correct == sum(r == h for r, h in pairs)
    assert counts.n - counts.d + counts.i == len(hyp)


@given(tokens, tokens)
def test_swapping_sides_swaps_insertions_and_deletions(ref, hyp):
    assert count(align(ref, hyp)).errors == count(align(hyp, ref)).errors
    assert count(align(ref, ref)) == Counts(n=len(ref))


def test_counts_of_a_known_case():
    pairs = align(["the", "cat", "sat", "on", "mat"], ["a", "cat", "sat", "on", "the", "mat"])
    assert pairs == [("the", "a"), ("cat", "cat"), ("sat", "sat"), ("on", "on"), (None, "the"), ("mat", "mat")]
    assert count(pairs) == Counts(n=5, s=1, d=0, i=1)
    assert count(pairs).rate == 0.4


def test_literal_star_is_a_token_like_any_other():
    assert count(align(["*", "a"], ["a"])) == Counts(n=2, d=1)
    assert count(align(["a"], ["*", "a"])) == Counts(n=1, i=1)
    assert count(align(["*"], ["b"])) == Counts(n=1, s=1)


def test_empty_reference_has_no_rate_but_keeps_its_insertions():
    counts = count(align([], ["a", "b"]))
    assert counts == Counts(i=2) and counts.errors == 2 and counts.rate is None
    assert (counts + Counts(n=4)).rate == 0.5


@given(st.lists(st.builds(Counts, *[st.integers(0, 99)] * 4)))
def test_addition_pools(parts):
    total = sum(parts, Counts())
    for name in ("n", "s", "d", "i", "errors", "correct"):
        assert getattr(total, name) == sum(getattr(part, name) for part in parts)


def test_counts_as_json():
    assert Counts(4, 1, 0, 2).to_dict() == {"n": 4, "s": 1, "d": 0, "i": 2, "errors": 3, "rate": 0.75}


@given(st.text(LATIN))
def test_mer_is_wer_on_latin_text(text):
    assert tokenise(text, "mer") == tokenise(text, "wer")


@pytest.mark.parametrize("alphabet", [HAN, KANA])
def test_mer_is_cer_on_han_and_kana_text(alphabet):
    @given(st.text(alphabet))
    def check(text):
        assert tokenise(text, "mer") == tokenise(text, "cer")

    check()


@given(st.text())
def test_no_metric_loses_or_invents_a_character(text):
    solid = "".join(unicodedata.normalize("NFC", text).split())
    for metric in ("wer", "cer", "mer"):
        found = tokenise(text, metric)
        assert "".join(found) == solid
        assert all(token and not any(c.isspace() for c in token) for token in found)


def test_tokens_of_mixed_text():
    text = "我用 GitHub写code， 한국 カタOK Ａ１"
    assert tokenise(text, "mer") == ["我", "用", "GitHub", "写", "code", "，", "한", "국", "カ", "タ", "OK", "Ａ１"]
    assert tokenise(text, "wer") == ["我用", "GitHub写code，", "한국", "カタOK", "Ａ１"]
    assert tokenise("a  b\tc\n", "cer") == ["a", "b", "c"]


def test_composed_and_decomposed_letters_are_the_same():
    for metric in ("wer", "cer", "mer"):
        assert tokenise("cafe\u0301 か\u3099", metric) == tokenise("caf\u00e9 が", metric)
    assert tokenise("बा", "cer") == ["ब", "ा"]  # no composed form: two characters

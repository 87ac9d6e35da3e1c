import io

from hypothesis import given
from hypothesis import strategies as st

from moe_asr.scoring.align import Counts, align
from moe_asr.scoring.hypotheses import Hypothesis
from moe_asr.scoring.scored import score
from moe_asr.scoring.transcripts import alignment_line, rate_line, write_errs, write_recogs

HYPOTHESES = [
    Hypothesis("u2", "the cat sat on a mat", "the hat sat on mat mat"),
    Hypothesis("u1", "a cat", "a cat"),
]

ERRS = """\
%WER 37.50% [3 / 8, 1 ins, 1 del, 1 sub ]
Errors: 1 insertions, 1 deletions, 1 substitutions, over 8 reference tokens (6 correct)
Search below for sections starting with PER-UTT DETAILS:, SUBSTITUTIONS:, DELETIONS:, INSERTIONS:, PER-WORD STATS:

PER-UTT DETAILS: corr or (ref->hyp), * for nothing
u1:\ta cat
u2:\tthe (cat->*) sat on (*->big) mat (a->in)
"""


def written(write, hypotheses, *arguments):
    file = io.StringIO()
    write(file, score(hypotheses, "wer"), *arguments)
    return file.getvalue()


def test_recogs():
    assert written(write_recogs, HYPOTHESES) == (
        "u1:\tref=['a', 'cat']\nu1:\thyp=['a', 'cat']\n"
        "u2:\tref=['the', 'cat', 'sat', 'on', 'a', 'mat']\nu2:\thyp=['the', 'hat', 'sat', 'on', 'mat', 'mat']\n"
    )


def test_errs():
    hypotheses = [Hypothesis("u2", "the cat sat on mat a", "the sat on big mat in"), HYPOTHESES[1]]
    assert written(write_errs, hypotheses) == ERRS + (
        "\nSUBSTITUTIONS: count ref -> hyp\n1   a -> in\n"
        "\nDELETIONS: count ref\n1   cat\n"
        "\nINSERTIONS: count hyp\n1   big\n"
        "\nPER-WORD STATS: word  corr tot_errs count_in_ref count_in_hyp\n"
        "a   1 1 2 1\nbig   0 1 0 1\ncat   1 1 2 1\nin   0 1 0 1\n"
        "mat   1 0 1 1\non   1 0 1 1\nsat   1 0 1 1\nthe   1 0 1 1\n"
    )


def test_literal_star_does_not_look_like_a_gap():
    text = written(write_errs, [Hypothesis("u", "a *", "a"), Hypothesis("v", "b", "b *")])
    assert "u:\ta (*->**)\n" in text and "v:\tb (**->*)\n" in text
    assert "%WER 66.67% [2 / 3, 1 ins, 1 del, 0 sub ]" in text


def test_empty_reference_set():
    text = written(write_errs, [Hypothesis("u", "", "uh huh")])
    assert text.startswith("%WER n/a [2 / 0, 2 ins, 0 del, 0 sub ]\n")
    assert "u:\t(*->uh huh)\n" in text and "1   huh\n1   uh\n" in text


def test_rate_line_names_the_metric():
    assert rate_line(Counts(3, 1, 0, 0), "cer") == "%CER 33.33% [1 / 3, 0 ins, 0 del, 1 sub ]"


def test_neighbouring_errors_share_a_bracket():
    pairs = [("the", "the"), ("cat", "hat"), (None, "sat"), ("on", "on"), ("a", None), ("mat", "mat")]
    assert alignment_line(pairs, "*") == "the (cat->hat sat) on (a->*) mat"
    assert alignment_line([], "*") == ""


@given(st.lists(st.tuples(st.text("ab* ", max_size=12), st.text("ab* ", max_size=12)), max_size=5))
def test_sections_add_up_to_the_counts(texts):
    hypotheses = [Hypothesis(f"u{k}", ref, hyp) for k, (ref, hyp) in enumerate(texts)]
    sections = written(write_errs, hypotheses).split("\n\n")
    pairs = [pair for ref, hyp in texts for pair in align(ref.split(), hyp.split())]
    totals = [sum(int(line.split()[0]) for line in section.splitlines()[1:]) for section in sections[2:5]]
    assert totals == [
        sum(r is not None and h is not None and r != h for r, h in pairs),
        sum(h is None for _, h in pairs),
        sum(r is None for r, _ in pairs),
    ]
    words = [line.split() for line in sections[5].splitlines()[1:]]
    assert sum(int(w[1]) for w in words) == sum(r == h for r, h in pairs)
    assert sum(int(w[2]) for w in words) == 2 * totals[0] + totals[1] + totals[2]
    assert sum(int(w[3]) for w in words) == sum(len(ref.split()) for ref, _ in texts)

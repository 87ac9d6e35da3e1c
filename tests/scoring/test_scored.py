import pytest

from moe_asr.errors import UserError
from moe_asr.scoring.align import Counts
from moe_asr.scoring.hypotheses import Hypothesis
from moe_asr.scoring.scored import UNKNOWN, group_by, pool, score

HYPOTHESES = [
    Hypothesis("b", "Hello, World", "hello world", speaker="s2", accent="us"),
    Hypothesis("a", "one two", "one", speaker="s1", accent="de"),
    Hypothesis("c", "", "Uh.", speaker="s1"),
]


def test_normaliser_is_applied_to_both_sides():
    assert pool(score(HYPOTHESES, "wer", "none")) == Counts(n=4, s=2, d=1, i=1)
    assert pool(score(HYPOTHESES, "wer", "english")) == Counts(n=4, s=0, d=1, i=1)
    flipped = [Hypothesis(h.id, h.hyp, h.ref) for h in HYPOTHESES]
    assert pool(score(flipped, "wer", "english")) == Counts(n=4, s=0, d=1, i=1)


def test_raw_texts_are_kept():
    assert [one.hypothesis for one in score(HYPOTHESES, "wer", "english")] == HYPOTHESES


def test_metric_chooses_the_tokens():
    one = [Hypothesis("a", "我用 code", "我有 code")]
    assert [pool(score(one, metric)) for metric in ("wer", "cer", "mer")] == [Counts(2, 1), Counts(6, 1), Counts(3, 1)]


def test_spaces_beside_mandarin_characters_do_not_count():
    pytest.importorskip("opencc")
    ref, spaced, wrong = "我今天七点去 GitHub 上班。", "我 今天 7 点，去github上 班", "我今天一点去 git hub 上班"
    for metric, tokens, errors in (("cer", 14, 1), ("mer", 9, 2)):  # github is six letters, or one word
        for normaliser in ("none", "mandarin"):
            assert pool(score([Hypothesis("a", spaced, spaced.replace(" ", ""))], "cer", normaliser)).errors == 0
        assert pool(score([Hypothesis("a", ref, spaced)], metric, "mandarin")) == Counts(tokens)
        assert pool(score([Hypothesis("a", spaced, ref)], metric, "mandarin")) == Counts(tokens)
        counts = pool(score([Hypothesis("a", ref, wrong)], metric, "mandarin"))
        assert (counts.n, counts.s, counts.d) == (tokens, errors, 0) and counts.i == (metric == "mer")


def test_unknown_normaliser():
    with pytest.raises(UserError, match="nonsense"):
        score(HYPOTHESES, "wer", "nonsense")


def test_groups_partition_the_utterances_and_their_counts():
    scored = score(HYPOTHESES, "wer")
    groups = group_by(scored, "accent")
    assert {name: [x.id for x in members] for name, members in groups.items()} == {
        UNKNOWN: ["c"],
        "de": ["a"],
        "us": ["b"],
    }
    assert sum((pool(members) for members in groups.values()), Counts()) == pool(scored)
    assert list(group_by(scored, "speaker")) == ["s1", "s2"]
    assert group_by(scored, "language") == {}

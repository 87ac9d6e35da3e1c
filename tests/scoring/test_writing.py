import pytest

from moe_asr.errors import UserError
from moe_asr.scoring.align import Counts
from moe_asr.scoring.hypotheses import Hypothesis
from moe_asr.scoring.scored import by_unit, pool, score
from moe_asr.scoring.writing import WITHOUT_SPACES, metric_of, normaliser_of


def test_languages_without_spaces_count_characters():
    for language in "zh zh-CN zh_TW cmn_hans_cn yue yue_hant_hk ja th lo my km bo".split():
        assert metric_of("auto", language) == "cer", language
    for language in "en de fa ko vi ar zu thx bos".split():
        assert metric_of("auto", language) == "wer", language


def test_other_metrics_stay():
    assert [metric_of(metric, "zh") for metric in ("wer", "cer", "mer")] == ["wer", "cer", "mer"]
    assert metric_of("mer", "") == "mer"


def test_auto_needs_languages():
    with pytest.raises(UserError, match="utterance 'u7' has none: give wer, cer or mer"):
        metric_of("auto", "", "u7")


def test_the_table_in_the_documentation_is_the_table():
    from moe_asr.scoring import writing

    row = next(line for line in writing.__doc__.splitlines() if "without spaces" in line)
    assert sorted(row.split("|")[2].split()) == sorted(WITHOUT_SPACES)


def test_every_utterance_counts_in_its_unit():
    hypotheses = [
        Hypothesis("a", "ab cd ef", "ab cd xx", language="de"),
        Hypothesis("b", "สวัสดี ครับ", "สวัสดีครับ", language="th"),
    ]
    scored = score(hypotheses, "auto")
    assert [x.metric for x in scored] == ["wer", "cer"]
    assert {unit: pool(one) for unit, one in by_unit(scored).items()} == {"cer": Counts(10), "wer": Counts(3, 1)}


def test_mandarin_has_a_normaliser_of_its_own():
    assert normaliser_of("multilingual", "auto", "zh-CN") == normaliser_of("multilingual", "auto", "cmn") == "mandarin"
    for normaliser, metric, language in (
        ("multilingual", "auto", "ja"),
        ("none", "auto", "zh"),
        ("multilingual", "cer", "zh"),
    ):
        assert normaliser_of(normaliser, metric, language) == normaliser

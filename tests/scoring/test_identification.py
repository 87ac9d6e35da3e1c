import pytest

from moe_asr.scoring.hypotheses import Hypothesis
from moe_asr.scoring.identification import identification


def heard(name, language, detected, speaker=""):
    return Hypothesis(name, "x", "x", speaker, language=language, detected=detected)


def test_accuracy_and_who_is_taken_for_whom():
    found = identification([
        heard("a", "zh-CN", "zh"), heard("b", "zh-CN", "ja"), heard("c", "de", "de"), heard("d", "de", "de"),
        heard("e", "", "de"),
    ])  # fmt: skip
    assert (found.overall.utterances, found.overall.right) == (4, 3) and found.unit == "utterance"
    assert found.classes == ("de", "ja", "zh") and found.confusion == [[2, 0, 0], [0, 0, 0], [0, 1, 1]]
    assert found.each["de"].rate == 1.0 and found.each["zh"].rate == 0.5


def test_none_where_the_language_was_told():
    assert identification([heard("a", "de", "")]) is None


def test_mean_over_languages_weighs_each_the_same():
    found = identification([heard(str(k), "de", "de") for k in range(9)] + [heard("x", "fr", "de")])
    assert found.overall.rate == 0.9 and found.mean == pytest.approx(0.5)

import pytest

from moe_asr.data.languages import check_languages, find_language, language_piece
from moe_asr.data.manifests import Utterance
from moe_asr.errors import UserError


@pytest.mark.parametrize(
    "name, code",
    [("de", "de"), ("zh-CN", "zh"), ("sv_SE", "sv"), ("pt-BR", "pt-BR"), ("PT-PT", "pt"), ("xx", None), ("", None)],
)
def test_a_language_is_found_by_its_own_name_or_the_beginning_of_it(name, code):
    assert find_language(["de", "zh", "sv", "pt", "pt-BR"], name) == code


def test_unknown_languages_are_named_before_anything_runs():
    def utterance(language):
        return Utterance(id="a", audio="a.wav", num_samples=9, sample_rate=16000, text="x", language=language)

    check_languages([utterance("de"), utterance("zh-CN")], ["de", "zh"], "do that")
    with pytest.raises(UserError, match="^language '', 'eo' is none that the model knows, which are de, zh: correct"):
        check_languages([utterance("eo"), utterance(""), utterance("de")], ["de", "zh"], "do that")


@pytest.mark.parametrize("name", ["", "D E", "german", "<|de|>", "1"])
def test_pieces_need_codes(name):
    assert language_piece("zh-CN") == "<|zh-CN|>"
    with pytest.raises(UserError, match="is no code of a language"):
        language_piece(name)

import pickle

import pytest

from moe_asr.data.tokens import Tokens, train_tokens
from moe_asr.errors import UserError

TEXTS = ["turn on the light in the kitchen", "turn off the radio", "it's the other one", "put the red box there"] * 5


@pytest.mark.parametrize("kind, size", [("char", 0), ("bpe", 40), ("unigram", 33)])
def test_text_survives_encoding_and_a_new_process(tmp_path, kind, size):
    tokens = train_tokens(TEXTS, tmp_path, kind, size)
    again = Tokens(tmp_path)
    for text in [*TEXTS, "the kitchen radio is there", "on"]:
        ids = tokens.encode(text)
        assert tokens.decode(ids) == text
        assert min(ids) > 2 and max(ids) < tokens.size
        assert again.encode(text) == ids == pickle.loads(pickle.dumps(tokens)).encode(text)


def test_special_tokens(tmp_path):
    tokens = train_tokens(TEXTS, tmp_path, "bpe", 40)
    assert [tokens.piece(i) for i in range(3)] == ["<blk>", "<unk>", "<sos/eos>"] and tokens.blank == 0
    assert tokens.size == 40
    a, b = tokens.encode("the"), tokens.encode("radio")
    assert tokens.decode([0, *a, 0, 2, *b, 2]) == "the radio" and tokens.decode([]) == ""
    assert 1 in tokens.encode("zebra Ω")


def test_text_cannot_make_special_tokens(tmp_path):
    tokens = train_tokens([*TEXTS, "a <blk> b <sos/eos>"], tmp_path, "char")
    assert not {0, 2} & set(tokens.encode("a <blk> b <sos/eos>"))


def test_characters_are_all_taken(tmp_path):
    tokens = train_tokens(["ab ba", "你 b"], tmp_path, "char")
    assert {tokens.piece(i) for i in range(3, tokens.size)} == {"a", "b", "你", "▁"}
    assert len(tokens.encode("ab ba")) == 5
    assert (tmp_path / "tokens.txt").read_text(encoding="utf-8").splitlines()[0] == "<blk> 0"


def test_rare_characters_become_unknown(tmp_path):
    tokens = train_tokens(["aaa bbb aaa bbb c"], tmp_path, "char", 6)
    assert tokens.size == 6 and tokens.encode("c") == [1]


def test_words_are_all_taken_or_the_rarest_become_unknown(tmp_path):
    tokens = train_tokens(["zh ong 1 g uo 2", "zh e 4 zh 4"], tmp_path, "word")
    pieces = {tokens.piece(i).removeprefix("▁") for i in range(3, tokens.size)}
    assert pieces == {"zh", "ong", "1", "g", "uo", "2", "e", "4"}
    assert len(tokens.encode("zh ong 4")) == 3 and tokens.encode("z") == [1]
    assert train_tokens(["zh zh 4 4 e"], tmp_path, "word", 5).encode("e 4")[0] == 1


def test_same_text_same_tokens(tmp_path):
    train_tokens(TEXTS, tmp_path / "a", "unigram", 35)
    train_tokens(iter(TEXTS), tmp_path / "b", "unigram", 35)
    assert (tmp_path / "a/tokens.model").read_bytes() == (tmp_path / "b/tokens.model").read_bytes()


def test_a_long_text_counts(tmp_path):
    tokens = train_tokens(["ab " * 5000, "z"], tmp_path, "char")
    assert tokens.decode(tokens.encode("ab z")) == "ab z"


@pytest.mark.parametrize(
    "texts, kind, size, message",
    [
        (["", " "], "char", 0, "no text"),
        (TEXTS, "bpe", 10, "need a vocabulary of 2[0-9] at least .* not 10"),
        (TEXTS, "bpe", 5000, "cannot learn 5000 bpe tokens: .*too high"),
        (TEXTS, "unigram", 5000, "cannot learn 5000 unigram tokens: .*too high"),
        (TEXTS, "char", 3, "no room for characters"),
    ],
)
def test_bad_requests_are_one_line(tmp_path, texts, kind, size, message):
    with pytest.raises(UserError, match=message) as caught:
        train_tokens(texts, tmp_path, kind, size)
    assert "\n" not in str(caught.value)


def test_missing_or_foreign_model_is_named(tmp_path):
    with pytest.raises(UserError, match="no tokens at"):
        Tokens(tmp_path)
    (tmp_path / "tokens.model").write_bytes(b"not a model")
    with pytest.raises(UserError, match="not a sentencepiece model"):
        Tokens(tmp_path)


@pytest.mark.parametrize("kind, size", [("char", 0), ("word", 0), ("bpe", 42)])
def test_languages_have_tokens_that_no_text_has_and_none_shows(tmp_path, kind, size):
    without = train_tokens(TEXTS, tmp_path / "without", kind, size - 2 if size else 0)
    tokens = train_tokens(TEXTS, tmp_path / "with", kind, size, ["de", "zh-CN"])
    assert tokens.languages == {"de": 3, "zh-CN": 4} and without.languages == {}
    assert tokens.size == without.size + 2 and Tokens(tmp_path / "with").languages == tokens.languages
    text = "turn off the radio"
    assert tokens.decode([3, *tokens.encode(text), 4]) == text
    assert not {3, 4} & set(tokens.encode("<|de|> radio <|zh-CN|>"))


def test_a_language_has_one_token(tmp_path):
    with pytest.raises(UserError, match="a language is named twice: de, de"):
        train_tokens(TEXTS, tmp_path, "char", 0, ["de", "de"])

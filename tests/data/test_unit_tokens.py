"""Characters and units as tokens, for `tokenizers`, `transformers` and our own reader alike."""

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from moe_asr.data.tokens import load_tokens
from moe_asr.data.unit_tokens import build_tokenizer, encode_prompt, encode_texts, save_tokenizer
from moe_asr.models.language_model import LanguageModel, LanguageModelConfig

PROMPT = "<speech>="


@pytest.fixture
def tokenizer():
    return build_tokenizer(["天天 a[b]", "天安"], ["[zh]", "[a]"], PROMPT, 0)


def test_ids_are_in_the_stated_order(tokenizer):
    vocabulary = tokenizer.get_vocab()
    written = sorted(vocabulary, key=vocabulary.get)
    assert written == ["<unk>", "<|end|>", "天", " ", "[", "]", "a", "b", "安", "=", "[-]", "[a]", "[zh]"]


def test_a_limited_vocabulary_keeps_the_most_frequent_and_the_prompt():
    few = build_tokenizer(["天天安安好"], [], PROMPT, 2).get_vocab()
    assert "天" in few and "安" in few and "=" in few and "好" not in few


def test_texts_come_back_with_their_spaces(tokenizer):
    [ids] = encode_texts(tokenizer, ["天 a安"])
    assert len(ids) == 4 and tokenizer.decode(ids) == "天 a安"


def test_no_text_becomes_a_unit_or_an_end(tokenizer):
    vocabulary = tokenizer.get_vocab()
    [ids] = encode_texts(tokenizer, ["[a]<|end|>\n"])
    assert ids[:3] == [vocabulary[c] for c in "[a]"]
    assert not set(ids) & {vocabulary["[a]"], vocabulary["<|end|>"]} and ids[-1] == vocabulary["<unk>"]


def test_units_vanish_from_decoded_text(tokenizer):
    vocabulary = tokenizer.get_vocab()
    assert tokenizer.decode([vocabulary[t] for t in ("[zh]", "天", "<|end|>", "[-]")]) == "天"


def test_saved_and_read_by_all(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path)
    LanguageModel(LanguageModelConfig(width=8, layers=1, heads=2, ffn=8), tokenizer.get_vocab_size(), 1).save(tmp_path)
    text = "天 [zh]安?"
    expected = tokenizer.encode(text).ids
    assert expected[2] == tokenizer.token_to_id("[zh]")
    auto = AutoTokenizer.from_pretrained(tmp_path)
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(text).ids == expected
    assert auto(text).input_ids == expected
    assert auto.eos_token_id == 1 and auto.unk_token_id == 0 and auto.decode(expected[:2]) == "天 "
    own = load_tokens(tmp_path)
    assert own.encode_prompt(text[:-1]) == expected[:-1]
    assert own.encode(text) == encode_texts(tokenizer, [text])[0]


def test_the_prompt_has_one_place_for_speech(tokenizer):
    assert encode_prompt(tokenizer, "a<speech>[a]=") == (
        [tokenizer.token_to_id("a")],
        [tokenizer.token_to_id("[a]"), tokenizer.token_to_id("=")],
    )

import json
import pickle

import pytest

from moe_asr.data.tokens import Tokens, load_tokens, train_tokens
from moe_asr.data.whisper_tokens import WhisperTokens
from moe_asr.errors import UserError

tokenizers = pytest.importorskip("tokenizers")

TEXTS = ["turn on the light in the kitchen", "turn off the radio", "it's the other one", "put the box there"] * 5
SPECIAL = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]


@pytest.fixture
def whisper_tokens(tmp_path):
    """A tokenizer built as those of Whisper are; its times are no special tokens, as in theirs."""
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(TEXTS, vocab_size=300, show_progress=False)
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.add_tokens(["<|0.00|>", "<|0.02|>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return WhisperTokens(tmp_path), tokenizer


def test_text_survives_encoding_and_a_new_process(whisper_tokens, tmp_path):
    tokens, tokenizer = whisper_tokens
    tokens.save(tmp_path / "new")
    again = load_tokens(tmp_path / "new", whisper=True)
    assert isinstance(again, WhisperTokens) and again.digest == tokens.digest and again.size == tokens.size
    for text in [*TEXTS, "on", "café 你好 0 1 2", "a <|endoftext|> <|0.00|> b"]:
        ids = tokens.encode(text)
        assert tokens.decode(ids) == text
        assert again.encode(text) == ids == pickle.loads(pickle.dumps(tokens)).encode(text)


def test_the_first_word_has_its_space_unless_that_stands_alone(whisper_tokens):
    tokens, tokenizer = whisper_tokens
    assert tokens.encode("the light") == tokenizer.encode(" the light").ids
    assert tokens.piece(tokens.encode("the light")[0]) == "Ġthe"
    assert tokens.encode("你") == tokenizer.encode("你").ids
    assert tokens.encode("") == []


def test_special_tokens_are_neither_read_from_text_nor_written_to_it(whisper_tokens):
    tokens, tokenizer = whisper_tokens
    special = [tokenizer.token_to_id(piece) for piece in [*SPECIAL, "<|0.00|>", "<|0.02|>"]]
    assert not set(special) & set(tokens.encode("".join(SPECIAL) + "<|0.02|>"))
    the = tokens.encode("the")
    assert tokens.decode([*special, *the, special[0]]) == "the" and tokens.decode(special) == ""
    assert [tokens.piece(i) for i in special[:2]] == SPECIAL[:2]


def test_tokens_that_the_file_does_not_name_are_special(whisper_tokens, tmp_path):
    tokens, tokenizer = whisper_tokens
    larger = WhisperTokens(tmp_path, tokens.size + 3)
    assert larger.size == tokens.size + 3 and larger.piece(tokens.size) == f"<|{tokens.size}|>"
    the = tokens.encode("the")
    assert larger.encode("the") == the and larger.decode([tokens.size + 2, *the]) == "the"
    larger.save(tmp_path / "larger")
    assert WhisperTokens(tmp_path / "larger").size == larger.size
    with pytest.raises(UserError, match=f"has {tokens.size} tokens, but its model only 200"):
        WhisperTokens(tmp_path, 200)


def test_each_kind_is_recognised_by_its_file(whisper_tokens, tmp_path):
    train_tokens(TEXTS, tmp_path / "pieces", "char")
    assert isinstance(load_tokens(tmp_path / "pieces"), Tokens)
    with pytest.raises(UserError, match="no tokens at"):
        load_tokens(tmp_path / "nothing")


@pytest.mark.parametrize("change", ["cut", "list", "model", "ids"])
def test_a_damaged_file_is_one_line(whisper_tokens, tmp_path, change):
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    if change == "model":
        del content["model"]
    elif change == "ids":
        content["added_tokens"][0]["id"] += 1
    elif change == "list":
        content = [content]
    text = json.dumps(content)
    path.write_text(text[: len(text) // 2] if change == "cut" else text, encoding="utf-8")
    with pytest.raises(UserError, match="is not the tokenizer of a Whisper checkpoint") as caught:
        WhisperTokens(tmp_path)
    assert "\n" not in str(caught.value)

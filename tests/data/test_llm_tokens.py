import json
import pickle

import pytest

from moe_asr.data.llm_tokens import LLMTokens
from moe_asr.data.tokens import load_tokens
from moe_asr.errors import UserError

tokenizers = pytest.importorskip("tokenizers")
from tokenizers import Regex, decoders, models, pre_tokenizers, processors  # noqa: E402

TEXTS = ["turn on the light in the kitchen", "turn off the radio", "打开 厨房 的 灯", "北京 南京"] * 3
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def byte_level():
    """As those of Qwen; its last token is added, but not special."""
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(TEXTS, vocab_size=300, show_progress=False)
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.add_tokens(["<think>"])
    return tokenizer


def characters(unknown="[UNK]"):
    """One token a character, and units of pronunciation in brackets."""
    known = dict.fromkeys([*([unknown] if unknown else []), *"打开厨房的灯 "])
    model = models.WordLevel({piece: i for i, piece in enumerate(known)}, **({"unk_token": unknown} if unknown else {}))
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_tokens(["[zh]", "[ong]"])
    tokenizer.add_special_tokens(["<end>"])
    return tokenizer


def unigram():
    """With a beginning that the language model puts before texts, and names of its tokens in a list."""
    vocab = [("<unk>", 0.0), ("<s>", 0.0), ("▁the", -1.0), ("▁", -2.0), ("l", -3.0), ("ight", -2.0), ("▁light", -1.0)]
    tokenizer = tokenizers.Tokenizer(models.Unigram(vocab, unk_id=0))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.add_special_tokens(["<unk>", "<s>"])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


@pytest.fixture
def make(tmp_path):
    def make(tokenizer, size=0):
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        return LLMTokens(tmp_path, size)

    return make


@pytest.mark.parametrize(
    "kind, texts",
    [
        (byte_level, [*TEXTS, "café 你好 0 1 2", "a <|im_end|> b <|endoftext|>", "x <think> y", ""]),
        (characters, ["打开厨房 的灯", "", "[zh][ong]打"]),
        (unigram, ["the light", ""]),
    ],
)
def test_text_survives_encoding_and_a_new_process(make, tmp_path, kind, texts):
    tokens = make(kind())
    tokens.save(tmp_path / "new")
    again = load_tokens(tmp_path / "new")
    assert isinstance(again, LLMTokens) and again.digest == tokens.digest and again.size == tokens.size
    for text in texts:
        ids = tokens.encode(text)
        assert tokens.decode(ids) == text
        assert again.encode(text) == ids == pickle.loads(pickle.dumps(tokens)).encode(text)
        assert not set(tokens.special) & set(ids)


def test_ids_are_those_of_the_library(make):
    tokenizer = byte_level()
    tokens = make(tokenizer)
    assert tokens.encode("the light <think>") == tokenizer.encode("the light <think>").ids
    assert tokens.piece(tokens.find("<think>")) == "<think>" and tokens.find("<none>") is None
    tokens = make(unigram())
    assert tokens.encode("the light") == [2, 6] and tokens.opening == "<s>"
    assert tokens.special == (0, 1) and tokens.decode([1, 2, 0, 6]) == "the light"


def test_special_tokens_are_read_from_a_prompt_only(make):
    tokens = make(byte_level())
    start, end = tokens.find("<|im_start|>"), tokens.find("<|im_end|>")
    prompt = "<|im_start|>turn<|im_end|>"
    assert tokens.encode_prompt(prompt) == [start, *tokens.encode("turn"), end]
    assert not {start, end} & set(tokens.encode(prompt)), "reading a prompt must leave texts alone"
    assert tokens.decode([start, *tokens.encode("turn"), end]) == "turn"
    assert tokens.special == tuple(tokens.find(piece) for piece in SPECIAL) and tokens.opening == ""


def test_added_tokens_that_are_not_special_are_read_from_text(make):
    tokens = make(characters())
    assert tokens.encode("[zh][ong]打") == [tokens.find(piece) for piece in ("[zh]", "[ong]", "打")]


@pytest.mark.parametrize(
    "tokenizer, prompt, says",
    [
        (characters(), "打x", "'打x' .*there is none for 'x'"),
        (characters(), "[UNK]", "there is none for '\\['"),
        (characters(unknown=None), "打x", "'打x' cannot be written .*WordLevel error"),
        (unigram(), "the x", "there is none for 'x'"),
        (tokenizers.Tokenizer(models.BPE({"a": 0}, [])), "a xa", "there is none for 'x'"),
    ],
)
def test_a_prompt_of_other_characters_is_refused(make, tokenizer, prompt, says):
    tokens = make(tokenizer)
    with pytest.raises(UserError, match=says) as caught:
        tokens.encode_prompt(prompt)
    assert "\n" not in str(caught.value)


def test_settings_of_the_file_that_cut_or_pad_texts_do_not_count(make):
    tokenizer = characters()
    expected = make(tokenizer).encode("打开厨房")
    tokenizer.enable_truncation(2)
    assert make(tokenizer).encode("打开厨房") == expected
    tokenizer.no_truncation()
    tokenizer.enable_padding(length=9)
    assert make(tokenizer).encode("打开厨房") == expected


def test_tokens_of_a_padded_vocabulary_are_special(make, tmp_path):
    tokens = make(byte_level())
    larger = LLMTokens(tmp_path, tokens.size + 3)
    assert larger.size == tokens.size + 3 and larger.special == (*tokens.special, *range(tokens.size, larger.size))
    the = tokens.encode("the")
    assert larger.encode("the") == the and larger.decode([tokens.size + 2, *the]) == "the"
    larger.save(tmp_path / "larger")
    assert load_tokens(tmp_path / "larger").size == larger.size
    with pytest.raises(UserError, match=f"has {tokens.size} tokens, but its model only 200"):
        LLMTokens(tmp_path, 200)


@pytest.mark.parametrize("change", ["cut", "list", "model", "ids"])
def test_a_damaged_file_is_one_line(make, tmp_path, change):
    make(byte_level())
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
    with pytest.raises(UserError, match="is not the tokenizer of a language model") as caught:
        load_tokens(tmp_path)
    assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(UserError, match="no tokens at"):
        LLMTokens(tmp_path)

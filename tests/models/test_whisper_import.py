import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

transformers = pytest.importorskip("transformers")

import whisper_checkpoints  # noqa: E402
from whisper_checkpoints import edit  # noqa: E402

from moe_asr.data.tokens import Tokens, train_tokens  # noqa: E402
from moe_asr.data.whisper_tokens import WhisperTokens  # noqa: E402
from moe_asr.errors import UserError  # noqa: E402
from moe_asr.models.folder import load_model  # noqa: E402
from moe_asr.models.whisper_import import Choices, import_whisper  # noqa: E402

EMBEDDING = "model.decoder.embed_tokens.weight"


@pytest.fixture
def checkpoint(tmp_path):
    whisper_checkpoints.save_checkpoint(tmp_path / "theirs")
    return tmp_path / "theirs"


@pytest.fixture
def pieces(tmp_path):
    return str(train_tokens(whisper_checkpoints.TEXTS, tmp_path / "pieces", "char") and tmp_path / "pieces")


def taken(checkpoint, **choices):
    """The model folder that a checkpoint becomes, read again, and the lines about it."""
    lines = import_whisper(str(checkpoint), checkpoint.parent / "ours", "english", Choices(**choices))
    return load_model(checkpoint.parent / "ours"), lines


def change(checkpoint, edit_state):
    """Saves the weights after `edit_state` has changed them in place."""
    state = load_file(checkpoint / "model.safetensors")
    edit_state(state)
    save_file(state, checkpoint / "model.safetensors")


def test_every_weight_and_setting_is_taken_over(checkpoint):
    ours, lines = taken(checkpoint, tail_padding_seconds=0.4)
    state, expected = ours.model.state_dict(), load_file(checkpoint / "model.safetensors")
    expected = {name.removeprefix("model."): tensor for name, tensor in expected.items()}
    assert state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in state)
    config = ours.config.model.whisper
    assert config.prompt == (276, 281) and config.end == 275 and config.replaced == ()
    assert config.suppress == (0, 1, 2, 3, 4) and config.begin_suppress == (21, 275)
    assert (ours.config.features.kind, ours.config.features.num_mels) == ("whisper", 16)
    assert ours.config.features.tail_padding_seconds == 0.4 and ours.config.features.pad_seconds == 0
    assert ours.config.normaliser == "english" and not ours.config.finetuned
    assert isinstance(ours.tokens, WhisperTokens) and ours.tokens.size == config.vocab_size == 285
    assert len(lines) == 1 and f"{len(expected)} of {len(expected)} weights are those of {checkpoint}" in lines[0]


def test_padding_is_stored_with_the_model(checkpoint):
    assert taken(checkpoint, pad_to_30s=True)[0].config.features.pad_seconds == 2.0  # 100 positions


@pytest.mark.parametrize("options", [{"max_shard_size": "60KB"}, {"dtype": torch.float16}, {"base": True}])
def test_shards_half_precision_and_models_without_head(tmp_path, options):
    dtype, base = options.pop("dtype", torch.float32), options.pop("base", False)
    theirs = whisper_checkpoints.save_checkpoint(tmp_path / "theirs", **options)
    if dtype != torch.float32:
        theirs.to(dtype).save_pretrained(tmp_path / "theirs")
    if base:
        theirs.model.save_pretrained(tmp_path / "theirs")
        assert "encoder.conv1.weight" in load_file(tmp_path / "theirs/model.safetensors")
    assert ("max_shard_size" in options) == (tmp_path / "theirs/model.safetensors.index.json").is_file()
    state = taken(tmp_path / "theirs")[0].model.state_dict()
    for name, tensor in theirs.model.state_dict().items():
        assert state[name].dtype == torch.float32 and torch.equal(state[name], tensor.float())


def test_an_output_layer_is_the_embedding(checkpoint):
    change(checkpoint, lambda state: state.update({"proj_out.weight": state[EMBEDDING].clone()}))
    embedding = taken(checkpoint)[0].model.decoder.embed_tokens.weight
    change(checkpoint, lambda state: state.pop(EMBEDDING))
    assert torch.equal(taken(checkpoint)[0].model.decoder.embed_tokens.weight, embedding)
    change(checkpoint, lambda state: state.update({EMBEDDING: state["proj_out.weight"] + 1}))
    with pytest.raises(UserError, match="proj_out.weight differs from decoder.embed_tokens.weight"):
        taken(checkpoint)


class TestTokens:
    def test_from_vocabulary_and_merges(self, checkpoint):
        expected = taken(checkpoint)[0].tokens
        content = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
        (checkpoint / "vocab.json").write_text(json.dumps(content["model"]["vocab"]), encoding="utf-8")
        merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in content["model"]["merges"]]
        (checkpoint / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]), encoding="utf-8")
        added = {token["content"]: token["id"] for token in content["added_tokens"]}
        (checkpoint / "added_tokens.json").write_text(json.dumps(added))
        special = [name for name in added if name != "<|0.00|>"]
        (checkpoint / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": special}))
        (checkpoint / "tokenizer.json").unlink()
        tokens = taken(checkpoint)[0].tokens
        assert [tokens.piece(i) for i in range(tokens.size)] == [expected.piece(i) for i in range(expected.size)]
        assert tokens.encode("the light") == expected.encode("the light")

    def test_none_are_missed(self, checkpoint):
        (checkpoint / "tokenizer.json").unlink()
        with pytest.raises(UserError, match="has no tokenizer.json, nor vocab.json and merges.txt"):
            taken(checkpoint)

    def test_replaced_get_a_new_embedding_that_depends_on_the_seed_alone(self, checkpoint, pieces):
        old = load_file(checkpoint / "model.safetensors")[EMBEDDING]
        ours, lines = taken(checkpoint, tokens=pieces, seed=3)
        new = ours.model.decoder.embed_tokens.weight
        assert isinstance(ours.tokens, Tokens) and new.shape == (ours.tokens.size, 32)
        assert float(new.detach().std() / old.std()) == pytest.approx(1, abs=0.1)
        assert torch.equal(new, taken(checkpoint, tokens=pieces, seed=3)[0].model.decoder.embed_tokens.weight)
        assert not torch.equal(new, taken(checkpoint, tokens=pieces)[0].model.decoder.embed_tokens.weight)
        config = ours.config.model.whisper
        assert (config.prompt, config.end, config.suppress, config.begin_suppress) == ((2,), 2, (0,), ())
        said = f"{EMBEDDING[6:]} for 285 tokens, by a new one for {ours.tokens.size} tokens of another set"
        assert config.replaced[0].startswith(said) and lines[1] == f"replaced: {config.replaced[0]}"
        assert "88 of 89 weights are those of" in lines[0]

    def test_are_needed_where_the_embedding_is_missing(self, checkpoint, pieces):
        change(checkpoint, lambda state: state.pop(EMBEDDING))
        with pytest.raises(UserError, match="has no token embedding .*: give --tokens, the folder of a token set"):
            taken(checkpoint)
        ours, lines = taken(checkpoint, tokens=pieces)
        assert "for 285 tokens, which the checkpoint lacks, by a new one" in lines[1]
        new = ours.model.decoder.embed_tokens.weight.detach()
        assert float(new.std()) == pytest.approx(0.2, rel=0.1)  # its init_std

    def test_may_bring_a_ctc_output(self, checkpoint, pieces):
        ours, lines = taken(checkpoint, tokens=pieces, ctc_weight=0.3)
        assert ours.config.model.whisper.ctc_weight == 0.3 and ours.model.ctc_head.out_features == ours.tokens.size
        assert "88 of 91 weights are those of" in lines[0]
        assert lines[1].startswith("replaced: ") and lines[2].startswith("added: a CTC output for")
        with pytest.raises(UserError, match="a CTC output is learned for tokens of your own: give --tokens"):
            taken(checkpoint, ctc_weight=0.3)

    def test_of_whisper_replace_none(self, checkpoint):
        with pytest.raises(UserError, match="holds the tokens of a Whisper checkpoint"):
            taken(checkpoint, tokens=str(checkpoint))


class TestPrompt:
    """startoftranscript is 276, en 277, zh 278, translate 279, transcribe 280, notimestamps 281."""

    @pytest.fixture
    def multilingual(self, tmp_path):
        whisper_checkpoints.save_checkpoint(tmp_path / "many", multilingual=True)
        return tmp_path / "many"

    @pytest.mark.parametrize(
        "options, prompt",
        [
            ({"language": "zh"}, (276, 278, 280, 281)),
            ({"language": "<|en|>", "task": "translate"}, (276, 277, 279, 281)),
        ],
    )
    def test_of_a_multilingual_checkpoint(self, multilingual, options, prompt):
        assert taken(multilingual, **options)[0].config.model.whisper.prompt == prompt

    def test_of_one_that_was_trained_on_for_a_language(self, multilingual):
        path = multilingual / "generation_config.json"
        edit(path, forced_decoder_ids=[[1, 278], [2, 280]])
        assert taken(multilingual)[0].config.model.whisper.prompt == (276, 278, 280, 281)
        edit(path, language="en", task="translate")
        assert taken(multilingual)[0].config.model.whisper.prompt == (276, 277, 279, 281)

    def test_of_all_languages(self, multilingual):
        ours = taken(multilingual)[0].config.model.whisper
        assert ours.prompt == (276, 277, 280, 281) and ours.languages == {"en": 277, "zh": 278}
        edit(multilingual / "generation_config.json", lang_to_id=None)  # older checkpoints do not have it
        again = taken(multilingual)[0].config.model.whisper
        assert again.languages == ours.languages and again.prompt == ours.prompt

    def test_languages_are_told_apart_as_in_transformers(self, multilingual):
        theirs = transformers.WhisperForConditionalGeneration.from_pretrained(multilingual)
        ours = taken(multilingual)[0].model
        features = torch.randn(8, 200, 16, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            found = theirs.detect_language(features.transpose(1, 2))
            start = torch.full((8, 1), ours.prompt[0])
            logits_NV = theirs(features.transpose(1, 2), decoder_input_ids=start).logits[:, 0]
        posteriors_NL = ours.language_posteriors(*ours.encode(features, torch.full((8,), 200)))
        ids = torch.tensor(list(ours.languages.values()))
        assert ids[posteriors_NL.argmax(1)].tolist() == found.tolist()
        torch.testing.assert_close(posteriors_NL, logits_NV[:, ids].softmax(1), rtol=1e-4, atol=1e-5)

    def test_own_tokens_bring_their_languages(self, checkpoint, tmp_path):
        train_tokens(["ab ba"], tmp_path / "marked", "char", languages=["de", "fa"])
        config = taken(checkpoint, tokens=str(tmp_path / "marked"), language_weight=0.5)[0].config.model.whisper
        assert config.languages == {"de": 3, "fa": 4} and config.prompt == (2, 3)
        assert config.suppress == (0, 3, 4) and config.language_weight == 0.5

    def test_without_generation_settings_those_of_the_model_count(self, checkpoint):
        (checkpoint / "generation_config.json").unlink()
        edit(checkpoint / "config.json", suppress_tokens=[4], begin_suppress_tokens=[220])
        config = taken(checkpoint)[0].config.model.whisper
        assert (config.prompt, config.end) == ((276, 281), 275)  # English only, by the size of the vocabulary
        assert (config.suppress, config.begin_suppress) == ((4,), (220,))

    def test_needs_an_end(self, checkpoint):
        for end in (None, []):
            edit(checkpoint / "generation_config.json", eos_token_id=end)
            edit(checkpoint / "config.json", eos_token_id=end)
            with pytest.raises(UserError, match="names no token that ends a text .eos_token_id.: fetch it again"):
                taken(checkpoint)
        edit(checkpoint / "generation_config.json", eos_token_id=[275, 3])
        assert taken(checkpoint)[0].config.model.whisper.end == 275

    def test_needs_a_language_that_there_is(self, multilingual, checkpoint, pieces):
        with pytest.raises(UserError, match=r"has no token <\|english\|>: languages are written as in en, zh, fa"):
            taken(multilingual, language="english")
        with pytest.raises(UserError, match="knows English only: leave out --language and --task"):
            taken(checkpoint, language="en")
        with pytest.raises(UserError, match="tokens of your own have no languages and tasks"):
            taken(multilingual, language="en", tokens=pieces)


@pytest.mark.parametrize(
    "edit_state, message",
    [
        (lambda s: s.pop("model.decoder.layer_norm.bias"), "it lacks decoder.layer_norm.bias"),
        (lambda s: s.update({"model.more.weight": torch.ones(2)}), "it has an unexpected more.weight"),
        (lambda s: s.update({EMBEDDING: s[EMBEDDING][:-1]}), r"embed_tokens.weight is \(284, 32\), expected \(285"),
        (lambda s: s.update({EMBEDDING: s[EMBEDDING].to(torch.int8)}), "is torch.int8; quantised checkpoints"),
    ],
)
def test_other_weights_are_refused(checkpoint, edit_state, message):
    change(checkpoint, edit_state)
    with pytest.raises(UserError, match=message) as caught:
        taken(checkpoint)
    assert "\n" not in str(caught.value) and not (checkpoint.parent / "ours").exists()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"scale_embedding": True}, "scale_embedding True is not supported, only False"),
        ({"activation_function": "relu"}, "activation_function relu is not supported, only gelu"),
        ({"decoder_attention_heads": 2}, "decoder_attention_heads 2 is not supported, only 4"),
        ({"d_model": None}, "config.json lacks d_model"),
        ({"model_type": "bert"}, "is no Whisper checkpoint: its model_type is bert"),
    ],
)
def test_other_models_are_refused(checkpoint, changes, message):
    edit(checkpoint / "config.json", **changes)
    with pytest.raises(UserError, match=message):
        taken(checkpoint)


@pytest.mark.skipif("MOE_ASR_MODELS" not in os.environ, reason="MOE_ASR_MODELS, with whisper-tiny.en in it, is not set")
def test_published_weights(tmp_path, pieces):
    source = Path(os.environ["MOE_ASR_MODELS"], "whisper-tiny.en")
    lines = import_whisper(str(source), tmp_path / "ours", "english", Choices(tokens=pieces))
    ours = load_model(tmp_path / "ours")
    assert ours.config.model.whisper.width == 384 and "for 51,864 tokens" in lines[1]
    expected = load_file(source / "model.safetensors")["model.encoder.layers.3.fc2.weight"]
    assert torch.equal(ours.model.encoder.layers[3].fc2.weight, expected.float())

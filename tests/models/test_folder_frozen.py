"""Parts of a model that are never fine-tuned are stored once."""

import os
import shutil

import pytest
import torch

from moe_asr.data.features import FeatureConfig
from moe_asr.data.tokens import train_tokens
from moe_asr.errors import UserError
from moe_asr.models import folder as folder_module
from moe_asr.models.build import ModelConfig, build_model
from moe_asr.models.encoders import EncoderConfig
from moe_asr.models.folder import FolderConfig, load_model, load_weights, open_frozen, save_model, tensor_bytes
from moe_asr.models.speech_llm import SpeechLLMConfig


@pytest.fixture
def saved(tiny, tmp_path):
    """A saved speech LLM: folder, model, configuration, tokens."""
    torch.manual_seed(0)
    tokens = train_tokens(["a cab", "bad dab"], tmp_path / "lang", "char")
    lm = {"model_type": "qwen2", "vocab_size": tokens.size, "hidden_size": 8, "intermediate_size": 12}
    lm |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True}
    lm |= {"max_position_embeddings": 64}
    config = FolderConfig(
        ModelConfig(speech_llm=SpeechLLMConfig(EncoderConfig(conformer=tiny), lm, after=(3,), end=2)),
        FeatureConfig(num_mels=7),
        "english",
        untrained=True,
    )
    model = build_model(config.model)
    save_model(tmp_path / "init", model, config, tokens)
    return tmp_path / "init", model, config, tokens


def test_comes_back_the_same(saved):
    folder, model, config, _ = saved
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["config.yaml", "frozen.safetensors", "model.safetensors", "tokens"]
    loaded = load_model(folder)
    assert loaded.config == config
    assert model.state_dict().keys() == loaded.model.state_dict().keys() == tensor_bytes(folder).keys()
    for a, b in zip(model.state_dict().values(), loaded.model.state_dict().values(), strict=True):
        assert torch.equal(a, b) and a.dtype == b.dtype
    # also what is computed instead of stored
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), loaded.model.buffers(), strict=True))


def test_is_one_file_for_all_that_have_it_in_common(saved, tmp_path):
    init, model, config, tokens = saved
    with torch.no_grad():
        model.projector.linear1.bias += 1
    with open_frozen(init) as frozen:
        save_model(tmp_path / "base", model, config, tokens, frozen_from=frozen)
    assert os.path.samefile(init / "frozen.safetensors", tmp_path / "base" / "frozen.safetensors")
    assert torch.equal(load_model(tmp_path / "base").model.projector.linear1.bias, model.projector.linear1.bias)
    before = (init / "frozen.safetensors").read_bytes()
    with torch.no_grad():
        model.lm.norm.weight += 1
    save_model(tmp_path / "base", model, config, tokens)  # written anew, since nothing is said to be the same
    assert (init / "frozen.safetensors").read_bytes() == before
    assert torch.equal(load_model(tmp_path / "base").model.lm.norm.weight, model.lm.norm.weight)


def test_is_copied_where_links_are_impossible(saved, tmp_path, monkeypatch):
    init, model, config, tokens = saved

    def link(source, target):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(folder_module.os, "link", link)
    with open_frozen(init) as frozen:
        save_model(tmp_path / "base", model, config, tokens, frozen_from=frozen)
    copy = tmp_path / "base" / "frozen.safetensors"
    assert copy.read_bytes() == (init / "frozen.safetensors").read_bytes()
    assert not os.path.samefile(copy, init / "frozen.safetensors")


@pytest.mark.parametrize("how", ["replaced", "removed"])
def test_is_the_file_that_was_opened_whatever_lies_there_now(saved, tmp_path, how):
    init, model, config, tokens = saved
    before = (init / "frozen.safetensors").read_bytes()
    with open_frozen(init) as frozen:
        shutil.rmtree(init)
        if how == "replaced":
            save_model(init, build_model(config.model), config, tokens)
        save_model(tmp_path / "base", model, config, tokens, frozen_from=frozen)
    assert (tmp_path / "base" / "frozen.safetensors").read_bytes() == before


def test_a_model_without_them_has_no_such_file(tmp_path):
    for folder in (None, tmp_path):
        with open_frozen(folder) as frozen:
            assert frozen is None


def test_a_part_is_read_alone(saved):
    init, model, *_ = saved
    weights, expected = load_weights(init, "projector."), model.projector.state_dict()
    assert weights.keys() == expected.keys() and all(torch.equal(weights[name], expected[name]) for name in weights)


def test_one_line_says_that_it_is_missing_or_damaged(saved):
    init, *_ = saved
    content = (init / "frozen.safetensors").read_bytes()
    (init / "frozen.safetensors").write_bytes(content[:100])
    with pytest.raises(UserError, match="frozen.safetensors is damaged"):
        load_model(init)
    (init / "frozen.safetensors").unlink()
    with pytest.raises(UserError, match="does not fit its configuration: it lacks encoder"):
        load_model(init)


def test_a_token_set_of_another_size_is_refused(saved, tmp_path):
    init, model, config, _ = saved
    other = train_tokens(["a cab", "bad dab", "xyz"], tmp_path / "other", "char")
    with pytest.raises(UserError, match="the LM has 8 tokens, but the token set 11"):
        save_model(tmp_path / "base", model, config, other)

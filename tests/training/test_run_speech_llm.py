"""Training on a frozen language model."""

import os
from dataclasses import replace

import pytest
import torch

from moe_asr.config import load_config
from moe_asr.data.features import FeatureConfig
from moe_asr.data.tokens import load_tokens
from moe_asr.errors import UserError
from moe_asr.experts import ExpertSpec, RouterSpec
from moe_asr.methods.adaptation import AdaptationConfig
from moe_asr.models.build import ModelConfig, build_model
from moe_asr.models.conformer import ConformerConfig
from moe_asr.models.encoders import EncoderConfig
from moe_asr.models.folder import FolderConfig, load_model, save_model
from moe_asr.models.projector import ProjectorConfig
from moe_asr.models.speech_llm import SpeechLLMConfig
from moe_asr.quant import QuantConfig, quantise
from moe_asr.training.run import RunConfig, train


@pytest.fixture
def init(corpus, tmp_path):
    """An untrained speech LLM."""
    tokens = load_tokens(corpus / "tokens")
    lm = {"model_type": "qwen2", "vocab_size": tokens.size, "hidden_size": 16, "intermediate_size": 24}
    lm |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 40}
    encoder = EncoderConfig(conformer=ConformerConfig(mels=20, width=16, layers=1, heads=2))
    model = ModelConfig(speech_llm=SpeechLLMConfig(encoder, lm, ProjectorConfig(ffn=16), after=(3,), end=2))
    torch.manual_seed(0)
    folder = FolderConfig(model, FeatureConfig(num_mels=20), untrained=True)
    save_model(tmp_path / "init", build_model(model), folder, tokens)
    return tmp_path / "init"


@pytest.fixture
def config(corpus, init, tmp_path):
    (tmp_path / "run.yaml").write_text((corpus / "lora.yaml").read_text() + f"exp_dir: {tmp_path / 'base'}\n")
    return replace(load_config(RunConfig, tmp_path / "run.yaml"), init=str(init), adaptation=None)


def changed(a, b):
    a, b = (load_model(folder).model.state_dict() for folder in (a, b))
    return {name for name in a if not torch.equal(a[name], b[name])}


def test_the_projector_alone_is_trained_and_the_rest_is_stored_once(config, init, tmp_path):
    train(config)
    base = tmp_path / "base/final"
    names = load_model(init).model.state_dict()
    assert changed(init, base) == {name for name in names if name.startswith("projector.")}
    assert os.path.samefile(init / "frozen.safetensors", base / "frozen.safetensors")
    found = load_model(base).config
    assert not found.finetuned and not found.untrained  # its first training is no fine-tuning
    train(replace(config, init=str(base), exp_dir=str(tmp_path / "full")))
    assert load_model(tmp_path / "full/final").config.finetuned
    assert os.path.samefile(init / "frozen.safetensors", tmp_path / "full/final/frozen.safetensors")


@pytest.mark.parametrize("where", [r"projector\.linear[12]", r"encoder\..*q_proj", r"lm\..*\.[qk]_proj"])
def test_experts_anywhere_leave_every_weight_as_it_was(config, init, tmp_path, where):
    router = RouterSpec(route="local", select="all")
    experts = ExpertSpec((where,), num_experts=2, rank=1, router=router)
    train(replace(config, adaptation=AdaptationConfig(experts=experts)))
    assert (tmp_path / "base/final/adaptation.yaml").is_file() and not (tmp_path / "base/final/config.yaml").exists()


def test_a_quantised_language_model_leaves_the_projector_trainable(config, init, tmp_path):
    loaded = load_model(init)
    quantisation = QuantConfig(targets=(r"lm\.layers\..*_proj",))
    quantise(loaded.model, quantisation)
    save_model(tmp_path / "nf4", loaded.model, replace(loaded.config, quantisation=quantisation), loaded.tokens)
    train(replace(config, init=str(tmp_path / "nf4")))
    names = changed(tmp_path / "nf4", tmp_path / "base/final")
    assert names and all(name.startswith("projector.") for name in names)
    assert os.path.samefile(tmp_path / "nf4/frozen.safetensors", tmp_path / "base/final/frozen.safetensors")


def test_it_is_never_trained_from_nothing(config, init):
    model = load_model(init).config.model
    with pytest.raises(UserError, match="a speech_llm is trained from init, a folder that bin/import_speech_llm makes"):
        train(replace(config, init=None, model=model, tokens=str(init / "tokens")))


def test_an_utterance_that_does_not_fit_into_the_context_is_named(config, init):
    loaded = load_model(init)
    lm = {**loaded.config.model.speech_llm.lm, "max_position_embeddings": 11}
    model = ModelConfig(speech_llm=replace(loaded.config.model.speech_llm, lm=lm))
    save_model(init, build_model(model), replace(loaded.config, model=model), loaded.tokens)
    why = "its speech, prompt and text take 12 positions, the language model has 11"
    with pytest.raises(UserError, match=f"utterance u2 is too long: {why}"):
        train(config)

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml

from moe_asr.data.features import FeatureConfig
from moe_asr.data.manifests import Utterance, write_manifest
from moe_asr.data.tokens import load_tokens, train_tokens
from moe_asr.models.build import ModelConfig, build_model
from moe_asr.models.conformer import ConformerConfig
from moe_asr.models.conformer_ctc import ConformerCTCConfig
from moe_asr.models.encoders import EncoderConfig
from moe_asr.models.folder import FolderConfig, load_model, save_model
from moe_asr.models.projector import ProjectorConfig
from moe_asr.models.speech_llm import SpeechLLMConfig

sys.path.insert(0, str(Path(__file__).parent))  # for `import toy` and `several`


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Three speakers of four utterances, a base model and a configuration of one LoRA on it."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    utterances = []
    for n in range(12):
        path = str(folder / f"{n}.wav")
        soundfile.write(path, 0.1 * rng.standard_normal(16000 + 800 * n).astype("float32"), 16000)
        utterances.append(Utterance(f"u{n}", path, 16000 + 800 * n, 16000, "ab cd"[: 2 + n % 4].strip(), f"s{n % 3}"))
    write_manifest(folder / "all.jsonl", utterances)
    tokens = train_tokens([u.text for u in utterances], folder / "tokens", "char")
    encoder = ConformerConfig(mels=20, width=16, layers=1, heads=2)
    model = ModelConfig(conformer_ctc=ConformerCTCConfig(encoder=encoder, vocab_size=tokens.size))
    torch.manual_seed(0)
    save_model(folder / "base", build_model(model), FolderConfig(model, FeatureConfig(num_mels=20)), tokens)
    data = {"manifests": [str(folder / "all.jsonl")], "max_utterances": 2}
    experts = {"targets": [".*q_proj"], "num_experts": 1, "rank": 1, "router": {"route": "given", "select": "all"}}
    loop = {"max_epochs": 2, "tensorboard": False}
    config = {"init": str(folder / "base"), "adaptation": {"experts": experts}, "data": data, "valid": data}
    (folder / "lora.yaml").write_text(yaml.safe_dump({**config, "train": loop}))
    return folder


@pytest.fixture
def init(corpus, tmp_path):
    """An untrained speech LLM."""
    tokens = load_tokens(corpus / "tokens")
    lm = {"model_type": "qwen2", "vocab_size": tokens.size, "hidden_size": 16, "intermediate_size": 24}
    lm |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 40}
    # kernel: depthwise convolutions of 39 frames in bf16 may hang on CPUs with wider ones (torch 2.13, oneDNN)
    encoder = EncoderConfig(conformer=ConformerConfig(mels=20, width=16, layers=1, heads=2, kernel=5))
    model = ModelConfig(speech_llm=SpeechLLMConfig(encoder, lm, ProjectorConfig(ffn=16), after=(3,), end=2))
    torch.manual_seed(0)
    folder = FolderConfig(model, FeatureConfig(num_mels=20), untrained=True)
    save_model(tmp_path / "init", build_model(model), folder, tokens)
    return tmp_path / "init"


@pytest.fixture
def base(init, tmp_path):
    """The same, as if it had been trained."""
    loaded = load_model(init)
    save_model(tmp_path / "trained", loaded.model, replace(loaded.config, untrained=False), loaded.tokens)
    return tmp_path / "trained"

import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml

from moe_asr.data.features import FeatureConfig
from moe_asr.data.manifests import Utterance, write_manifest
from moe_asr.data.tokens import train_tokens
from moe_asr.models.build import ModelConfig, build_model
from moe_asr.models.conformer import ConformerConfig
from moe_asr.models.conformer_ctc import ConformerCTCConfig
from moe_asr.models.folder import FolderConfig, save_model

sys.path.insert(0, str(Path(__file__).parent))  # for `import toy`


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

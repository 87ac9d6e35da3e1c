import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from moe_asr.data.features import FeatureConfig
from moe_asr.data.tokens import train_tokens
from moe_asr.models.build import ModelConfig, build_model
from moe_asr.models.conformer import ConformerConfig
from moe_asr.models.conformer_aed import ConformerAEDConfig
from moe_asr.models.conformer_ctc import ConformerCTCConfig
from moe_asr.models.domain_classifier import DomainClassifierConfig
from moe_asr.models.encoders import EncoderConfig
from moe_asr.models.folder import FolderConfig, save_model
from moe_asr.models.transformer_decoder import DecoderConfig

sys.path.insert(0, str(Path(__file__).parent))  # for `import whisper_checkpoints`


@dataclass
class Targets:
    tokens_NU: torch.Tensor
    token_lengths_N: torch.Tensor
    domains_N: torch.Tensor
    languages: list[str] = ()


@pytest.fixture
def tiny():
    """Size of an encoder that is quick, with nothing dividing anything by chance."""
    return ConformerConfig(mels=7, width=12, layers=2, heads=2, ffn_multiplier=3, kernel=5, dropout=0.0)


@pytest.fixture
def make_targets():
    def make(tokens, domains=None):
        lengths = torch.tensor([len(t) for t in tokens])
        padded = torch.zeros(len(tokens), int(lengths.max()), dtype=torch.int64)
        for row, ids in zip(padded, tokens):
            row[: len(ids)] = torch.tensor(ids)
        return Targets(padded, lengths, torch.tensor(domains or [-1] * len(tokens)))

    return make


@pytest.fixture
def make_batch():
    """Utterances padded with rubbish, which nothing may depend on."""

    def make(lengths, mels=7, longer=0, rubbish=1e3, seed=0):
        generator = torch.Generator().manual_seed(seed)
        utterances = [torch.randn(n, mels, generator=generator) for n in lengths]
        features = torch.full((len(lengths), max(lengths) + longer, mels), rubbish)
        for row, utterance in zip(features, utterances):
            row[: len(utterance)] = utterance
        return features, torch.tensor(lengths), utterances

    return make


@pytest.fixture
def save_ours(tiny):
    """Saves a new model of some kind, with tokens where it needs them, and returns its folder."""

    def save(folder, kind):
        tokens = train_tokens(["a cab", "bad dab"], folder.parent / "lang", "char")
        torch.manual_seed(1)
        part = {
            "conformer_ctc": lambda: ConformerCTCConfig(tiny, tokens.size),
            "conformer_aed": lambda: ConformerAEDConfig(tiny, DecoderConfig(1, 2, 8), tokens.size),
            "domain_classifier": lambda: DomainClassifierConfig(EncoderConfig(tiny), domains=("a", "b")),
        }[kind]()
        config = FolderConfig(ModelConfig(**{kind: part}), FeatureConfig(num_mels=tiny.mels, normalise="mean_var"))
        save_model(folder, build_model(config.model), config, None if kind == "domain_classifier" else tokens)
        return folder

    return save

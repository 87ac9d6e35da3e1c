"""Small recognisers of every kind, a classifier and a batch, to put experts on."""

import dataclasses

import torch

from moe_asr.data.batches import Batch
from moe_asr.data.features import FeatureConfig, log_mel
from moe_asr.models.build import ModelConfig, build_model
from moe_asr.models.conformer import ConformerConfig
from moe_asr.models.conformer_aed import ConformerAEDConfig
from moe_asr.models.conformer_ctc import ConformerCTCConfig
from moe_asr.models.domain_classifier import DomainClassifierConfig
from moe_asr.models.encoders import EncoderConfig
from moe_asr.models.folder import FolderConfig, save_model
from moe_asr.models.projector import ProjectorConfig
from moe_asr.models.speech_llm import SpeechLLMConfig
from moe_asr.models.transformer_decoder import DecoderConfig
from moe_asr.models.whisper import WhisperConfig

ENCODER = ConformerConfig(mels=20, width=16, layers=2, heads=2)
FEATURES = FeatureConfig(num_mels=20)
DOMAINS = ("a", "b", "c")
LM = dict(model_type="qwen2", vocab_size=9, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
          num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
          tie_word_embeddings=True)  # fmt: skip
WHISPER = dict(mels=20, width=16, encoder_layers=1, decoder_layers=2, heads=2, ffn=24, max_frames=200, vocab_size=9,
               max_tokens=20, prompt=(1, 2), end=0)  # fmt: skip
MODELS = {
    "conformer_ctc": ConformerCTCConfig(encoder=ENCODER, vocab_size=9),
    "conformer_aed": ConformerAEDConfig(ENCODER, DecoderConfig(1, 2, 24, max_tokens=40), 9),
    "whisper": WhisperConfig(**WHISPER),
    "speech_llm": SpeechLLMConfig(EncoderConfig(ENCODER), LM, ProjectorConfig(12, 20, 2), "", (1,), (2, 3), 4),
}


def recogniser(kind="conformer_ctc"):
    torch.manual_seed(0)
    model = build_model(ModelConfig(**{kind: MODELS[kind]})).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.xavier_normal_(module.weight)
    return model


def batch(n=3):
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([16000, 9000, 12345])[:n]
    audio = 0.1 * torch.randn(n, 16000, generator=generator)
    audio[torch.arange(16000) >= lengths[:, None]] = 0
    tokens, token_lengths = torch.randint(3, 9, (n, 5), generator=generator), torch.tensor([3, 5, 1])[:n]
    tokens[torch.arange(5) >= token_lengths[:, None]] = 0
    names = [""] * n
    ids = [f"u{i}" for i in range(n)]
    return Batch(ids, names, names, names, names, audio, lengths, tokens, token_lengths, torch.tensor([0, 2, 1])[:n])


def cut(batch, n):
    """Utterance n alone, without padding."""
    rows = {k: v[n : n + 1] for k, v in vars(batch).items()}
    samples, tokens = int(rows["audio_lengths_N"]), int(rows["token_lengths_N"])
    rows |= {"audio_NS": rows["audio_NS"][:, :samples], "tokens_NU": rows["tokens_NU"][:, :tokens]}
    return dataclasses.replace(batch, **rows)


def features(batch):
    return log_mel(batch.audio_NS, batch.audio_lengths_N, FEATURES)


def fill(adapted, seed=1):
    """Trained-looking experts and routers."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapted.adapter.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return adapted


def save_classifier(folder):
    """A model folder of a classifier of random weights; returns its path."""
    torch.manual_seed(3)
    config = ModelConfig(domain_classifier=DomainClassifierConfig(EncoderConfig(ENCODER), domains=DOMAINS))
    save_model(folder, build_model(config), FolderConfig(config, FEATURES))
    return str(folder)

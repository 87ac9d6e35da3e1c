"""A small recogniser of random weights, whose texts differ between utterances."""

import torch

from moe_asr.data.features import FeatureConfig
from moe_asr.data.tokens import train_tokens
from moe_asr.models.build import ModelConfig
from moe_asr.models.conformer import ConformerConfig
from moe_asr.models.conformer_aed import ConformerAED, ConformerAEDConfig
from moe_asr.models.folder import FolderConfig, save_model
from moe_asr.models.transformer_decoder import DecoderConfig


def lively(module, generator):
    """Large weights, so that texts differ between utterances and between speakers."""
    for name, p in module.named_parameters():
        if p.dim() > 1:
            torch.nn.init.xavier_normal_(p, 2.0, generator=generator)


def save_aed(folder, generator, languages=()):
    """A Conformer with decoder and CTC, and perhaps with tokens of languages."""
    tokens = train_tokens(["abcdefghij klmnop"], folder.with_name("tokens"), "char", languages=languages)
    encoder = ConformerConfig(mels=20, width=16, layers=1, heads=2, ffn_multiplier=2, kernel=3)
    config = ConformerAEDConfig(encoder, DecoderConfig(1, 2, 24, max_tokens=40), tokens.size, tokens_per_frame=0.7,
                               languages=tokens.languages)  # fmt: skip
    torch.manual_seed(0)
    model = ConformerAED(config)
    lively(model, generator)
    about = FolderConfig(ModelConfig(conformer_aed=config), FeatureConfig(num_mels=20))
    save_model(folder, model.eval(), about, tokens)

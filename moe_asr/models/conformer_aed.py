"""Conformer encoder, Transformer decoder, and CTC (Watanabe et al. 2017, Gulati et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from moe_asr.data.tokens import SOS_EOS
from moe_asr.errors import UserError
from moe_asr.models.conformer import ADAPTER_TARGETS, ENCODER_ATTENTION, ConformerConfig, ConformerEncoder
from moe_asr.models.encoder_decoder import EncoderDecoder
from moe_asr.models.transformer_decoder import DecoderConfig, TransformerDecoder


@dataclass(frozen=True)
class ConformerAEDConfig:
    """A Conformer attention encoder-decoder with joint CTC.

    Args:
        encoder: size of the encoder.
        decoder: size of the decoder, which is as wide as the encoder.
        vocab_size: number of tokens; 0 takes that of the token set.
        ctc_weight: weight of the CTC loss; 0 for a model without.
        label_smoothing: share of the target spread over the vocabulary, in training.
        tokens_per_frame: bound of the length of a hypothesis, per encoder frame.
        ctc_backend: who computes the CTC loss.
        languages: token of each language by its code; filled in from the token set.
        language_weight: weight of the loss by which it learns to tell languages apart.
    """

    encoder: ConformerConfig = field(default_factory=ConformerConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    vocab_size: int = 0
    ctc_weight: float = 0.3
    label_smoothing: float = 0.1
    tokens_per_frame: float = 1.0
    ctc_backend: Literal["torch", "k2"] = "torch"
    languages: dict[str, int] = field(default_factory=dict)
    language_weight: float = 0.0

    def __post_init__(self):
        if not self.tokens_per_frame > 0:
            raise UserError(f"conformer_aed: tokens_per_frame must be above 0, not {self.tokens_per_frame}")


class ConformerAED(EncoderDecoder):
    """See `EncoderDecoder`; the prompt, but for the language, and the end are the token `<sos/eos>`."""

    default_targets = (
        *(f"encoder.{target}" for target in ADAPTER_TARGETS),
        r"decoder\.layers\.\d+\.(self|encoder)_attn\.(q|k|v|out)_proj",
        r"decoder\.layers\.\d+\.fc[12]",
    )
    attention_targets = {
        "encoder": (f"encoder.{ENCODER_ATTENTION}",),
        "decoder": (r"decoder\.layers\.\d+\.self_attn\.(q|k|v|out)_proj",),
        "cross": (r"decoder\.layers\.\d+\.encoder_attn\.(q|k|v|out)_proj",),
    }

    def __init__(self, config: ConformerAEDConfig) -> None:
        marks = tuple(config.languages.values())
        super().__init__(
            (SOS_EOS, *marks[:1]), SOS_EOS, (self.blank, *marks), (), config.ctc_weight, config.label_smoothing,
            config.tokens_per_frame, config.ctc_backend, config.languages, config.language_weight,
        )  # fmt: skip
        if config.vocab_size < 4:
            raise UserError(f"conformer_aed: vocab_size {config.vocab_size} leaves no token beside the special ones")
        self.encoder = ConformerEncoder(config.encoder)
        self.decoder = TransformerDecoder(config.decoder, config.encoder.width, config.vocab_size)
        if config.ctc_weight:
            self.ctc_head = nn.Linear(config.encoder.width, config.vocab_size)

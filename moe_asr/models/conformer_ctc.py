"""Conformer encoder with connectionist temporal classification (Graves et al. 2006).

Shape letters: N utterances, T frames, F mel bins, D encoder width, U tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from moe_asr.errors import UserError
from moe_asr.models.conformer import ADAPTER_TARGETS, ENCODER_ATTENTION, ConformerConfig, ConformerEncoder
from moe_asr.models.ctc_loss import CtcBackend, ctc_loss
from moe_asr.models.interface import Loss, Recogniser, Targets


@dataclass(frozen=True)
class ConformerCTCConfig:
    """A Conformer recogniser.

    Args:
        encoder: size of the encoder.
        vocab_size: number of tokens, blank included; 0 takes that of the token set.
        ctc_backend: who computes the loss.
    """

    encoder: ConformerConfig = field(default_factory=ConformerConfig)
    vocab_size: int = 0
    ctc_backend: CtcBackend = "torch"


class ConformerCTC(Recogniser):
    """P(tokens | x) = sum over alignments of prod_t softmax(W_head h_t + b), h = encoder(x).

    The loss is -log P in nats, summed over utterances; its count is the number of tokens. A text with more tokens (plus
    one for each immediate repetition) than encoder frames has no alignment: it adds nothing to loss and count, and its
    tokens are counted in the part `ctc_too_long`.

    Raises:
        UserError: a vocabulary without tokens.
    """

    default_targets = tuple(f"encoder.{target}" for target in ADAPTER_TARGETS)
    attention_targets = {"encoder": (f"encoder.{ENCODER_ATTENTION}",)}

    def __init__(self, config: ConformerCTCConfig):
        super().__init__()
        if config.vocab_size < 2:
            raise UserError(f"conformer_ctc: vocab_size {config.vocab_size} leaves no token beside the blank")
        self.encoder = ConformerEncoder(config.encoder)
        self.head = nn.Linear(config.encoder.width, config.vocab_size)
        self.ctc_backend = config.ctc_backend

    def forward(self, features_NTF: Tensor, feature_lengths_N: Tensor, batch: Targets) -> Loss:
        log_probs_NTV, lengths_N = self.log_probs(features_NTF, feature_lengths_N)
        loss_N, fits_N = ctc_loss(
            log_probs_NTV, lengths_N, batch.tokens_NU, batch.token_lengths_N, self.blank, self.ctc_backend
        )
        too_long = batch.token_lengths_N.masked_fill(fits_N, 0).sum()
        return Loss(loss_N.sum(), count=batch.token_lengths_N.sum() - too_long, parts={"ctc_too_long": too_long})

    def log_probs(self, features_NTF: Tensor, feature_lengths_N: Tensor) -> tuple[Tensor, Tensor]:
        states_NTD, lengths_N = self.encode(features_NTF, feature_lengths_N)
        return self.head(states_NTD).float().log_softmax(dim=-1), lengths_N

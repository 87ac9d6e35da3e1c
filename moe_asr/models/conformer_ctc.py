"""Conformer encoder with connectionist temporal classification (Graves et al. 2006).

Shape letters: N utterances, T frames, F mel bins, D encoder width, U tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_asr.errors import UserError
from moe_asr.models.conformer import ADAPTER_TARGETS, ConformerConfig, ConformerEncoder, OnConformer
from moe_asr.models.interface import Loss, Recogniser, Targets


@dataclass(frozen=True)
class ConformerCTCConfig:
    """A Conformer recogniser.

    Args:
        encoder: size of the encoder.
        vocab_size: number of tokens, blank included; 0 takes that of the token set.
    """

    encoder: ConformerConfig = field(default_factory=ConformerConfig)
    vocab_size: int = 0


class ConformerCTC(OnConformer, Recogniser):
    """P(tokens | x) = sum over alignments of prod_t softmax(W_head h_t + b), h = encoder(x).

    The loss is -log P in nats, summed over utterances; its count is the number of tokens. A text with more tokens (plus
    one for each immediate repetition) than encoder frames has no alignment: it adds nothing to loss and count, and its
    tokens are counted in the part `ctc_too_long`.

    Raises:
        UserError: a vocabulary without tokens.
    """

    default_targets = tuple(f"encoder.{target}" for target in ADAPTER_TARGETS)

    def __init__(self, config: ConformerCTCConfig):
        super().__init__()
        if config.vocab_size < 2:
            raise UserError(f"conformer_ctc: vocab_size {config.vocab_size} leaves no token beside the blank")
        self.encoder = ConformerEncoder(config.encoder)
        self.head = nn.Linear(config.encoder.width, config.vocab_size)

    def forward(self, features_NTF: Tensor, feature_lengths_N: Tensor, batch: Targets) -> Loss:
        log_probs_NTV, lengths_N = self.log_probs(features_NTF, feature_lengths_N)
        fits_N = required_frames(batch.tokens_NU, batch.token_lengths_N) <= lengths_N
        loss_N = F.ctc_loss(
            log_probs_NTV.transpose(0, 1),
            batch.tokens_NU,
            lengths_N,
            batch.token_lengths_N,
            blank=self.blank,
            reduction="none",
            zero_infinity=True,  # those are the texts that do not fit, which are reported
        )
        too_long = batch.token_lengths_N.masked_fill(fits_N, 0).sum()
        return Loss(
            total=loss_N.masked_fill(~fits_N, 0.0).sum(),
            count=batch.token_lengths_N.sum() - too_long,
            parts={"ctc_too_long": too_long},
        )

    def log_probs(self, features_NTF: Tensor, feature_lengths_N: Tensor) -> tuple[Tensor, Tensor]:
        states_NTD, lengths_N = self.encode(features_NTF, feature_lengths_N)
        return self.head(states_NTD).float().log_softmax(dim=-1), lengths_N


def required_frames(tokens_NU: Tensor, token_lengths_N: Tensor) -> Tensor:
    """Frames of the shortest alignment: one per token, and a blank between two equal neighbours."""
    inside_NU = torch.arange(tokens_NU.size(1), device=tokens_NU.device)[1:] < token_lengths_N.unsqueeze(1)
    return token_lengths_N + ((tokens_NU[:, 1:] == tokens_NU[:, :-1]) & inside_NU).sum(1)

"""Recogniser of accents, or of any other domains, on a speech encoder.

Shape letters: N utterances, T frames, F mel bins, D encoder width, B embedding width, E domains.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_asr.errors import UserError
from moe_asr.models.encoders import EncoderConfig, build_encoder
from moe_asr.models.interface import Loss, Model, Targets
from moe_asr.models.time_conv import padding_mask


@dataclass(frozen=True)
class DomainClassifierConfig:
    """A classifier of utterances into domains.

    Args:
        encoder: which encoder, see `EncoderConfig`; unset takes that of the model folder or checkpoint which training
            starts with (`init_encoder`).
        embedding: width of the utterance embedding.
        dropout: dropout on the embedding.
        label_smoothing: share of the target probability spread evenly over all domains.
        domains: names of the domains, in the order of the classes; empty takes those of the training data.
    """

    encoder: EncoderConfig | None = None
    embedding: int = 128
    dropout: float = 0.1
    label_smoothing: float = 0.0
    domains: tuple[str, ...] = ()

    def __post_init__(self):
        if len(set(self.domains)) != len(self.domains):
            raise UserError(f"domain_classifier: a domain occurs twice in {', '.join(self.domains)}")
        if self.embedding < 1:
            raise UserError(f"domain_classifier: embedding must be at least 1, not {self.embedding}")


class DomainClassifier(Model):
    """p_E = softmax(W embedding), embedding = Linear(statistics(encoder(x))).

    The loss is cross-entropy in nats, summed over utterances; its count is the number of utterances. Utterances of
    unknown domain (-1) count in neither. The part `accuracy` sums over those whose most probable domain is right.

    Raises:
        UserError: no encoder, or fewer than two domains.
    """

    def __init__(self, config: DomainClassifierConfig):
        super().__init__()
        if len(config.domains) < 2:
            raise UserError(
                f"domain_classifier: {len(config.domains)} domain(s) leave nothing to tell apart; name two at least"
            )
        if config.encoder is None:
            raise UserError("domain_classifier: set its encoder, or init_encoder to start with that of another model")
        self.domains = tuple(config.domains)
        self.label_smoothing = config.label_smoothing
        self.encoder = build_encoder(config.encoder)
        self.pooling = AttentiveStatistics(self.encoder.width)
        self.project = nn.Linear(2 * self.encoder.width, config.embedding)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.embedding, len(config.domains))

    def forward(self, features_NTF: Tensor, feature_lengths_N: Tensor, batch: Targets) -> Loss:
        logits_NE = self.logits(features_NTF, feature_lengths_N)
        known_N = batch.domains_N >= 0
        total = F.cross_entropy(
            logits_NE, batch.domains_N, ignore_index=-1, reduction="sum", label_smoothing=self.label_smoothing
        )
        correct = ((logits_NE.argmax(1) == batch.domains_N) & known_N).sum()
        return Loss(total=total, count=known_N.sum(), parts={"accuracy": correct})

    def posteriors(self, features_NTF: Tensor, feature_lengths_N: Tensor, temperature: float = 1.0) -> Tensor:
        """p_NE = softmax(logits / temperature), in float32."""
        return (self.logits(features_NTF, feature_lengths_N) / temperature).softmax(dim=-1)

    def logits(self, features_NTF: Tensor, feature_lengths_N: Tensor) -> Tensor:
        """logits_NE in float32."""
        embedding_NB = self.embedding(features_NTF, feature_lengths_N)
        return self.head(self.dropout(F.silu(embedding_NB))).float()

    def embedding(self, features_NTF: Tensor, feature_lengths_N: Tensor) -> Tensor:
        """embedding_NB, one vector for an utterance."""
        return self.project(self.pooling(*self.encode(features_NTF, feature_lengths_N)))


class AttentiveStatistics(nn.Module):
    """Weighted mean and standard deviation over real frames (Okabe et al. 2018), one weight per frame.

    a_t = softmax_t(score(x_t));  mean = sum_t a_t x_t;  std = sqrt(sum_t a_t (x_t - mean)^2 + 1e-5)
    """

    def __init__(self, width: int):
        super().__init__()
        self.score = nn.Linear(width, 1)

    def forward(self, x_NTD: Tensor, lengths_N: Tensor) -> Tensor:
        """x_NTD, frame counts -> [mean, std] of width 2D; an utterance without frames has mean zero."""
        x_NTD = x_NTD.float()
        padding_NT1 = padding_mask(lengths_N.clamp(min=1), x_NTD.size(1))
        weight_NT1 = self.score(x_NTD).float().masked_fill(padding_NT1, -torch.inf).softmax(dim=1)
        mean_N1D = (weight_NT1 * x_NTD).sum(1, keepdim=True)
        variance_ND = (weight_NT1 * (x_NTD - mean_N1D).square()).sum(1)
        return torch.cat([mean_N1D.squeeze(1), (variance_ND + 1e-5).sqrt()], dim=1)

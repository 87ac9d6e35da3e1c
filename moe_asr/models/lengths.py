"""Finding utterances that are too long for a model before it comes upon them."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from moe_asr.data.features import FeatureConfig, num_frames
from moe_asr.data.manifests import Utterance
from moe_asr.data.tokens import TokenSet
from moe_asr.errors import UserError
from moe_asr.models.interface import Recogniser


def check_lengths(
    utterances: Iterable[Utterance],
    recogniser: Recogniser,
    features: FeatureConfig,
    tokens: TokenSet | None = None,
    slowest: float = 1.0,
) -> None:
    """Refuses data with an utterance that is too long.

    Args:
        tokens: counts the tokens of the texts; None where texts are still to be found
        slowest: lowest factor of speed perturbation

    Raises:
        UserError: names the first one
    """
    for utterance in utterances:
        samples = torch.tensor(int(utterance.seconds / slowest * features.sample_rate))
        num_tokens = len(tokens.encode(utterance.text)) if tokens else 1
        if why := recogniser.too_long(int(num_frames(samples, features)), num_tokens):
            raise UserError(f"utterance {utterance.id} is too long: {why}; cut it, or leave it out")

"""How much a model can hear at once: utterances that are too long are found before it comes upon them."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable
from typing import Optional

import torch

from moe_asr.data.features import FeatureConfig, num_frames
from moe_asr.data.manifests import Utterance
from moe_asr.data.tokens import TokenSet
from moe_asr.errors import UserError
from moe_asr.models.interface import Recogniser

USUAL_PIECE = 20.0
"""Seconds of the longest piece into which recordings are cut, where a model can hear as much."""

_STEP = 0.02  # seconds, to which that of other models is found
_TOKENS = 10  # in a second of fast speech; texts of longer pieces would be cut off


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


def longest_piece(recogniser: Recogniser, features: FeatureConfig, wanted: Optional[float] = None) -> float:
    """Seconds of the longest piece to give to a model: those wanted, or 20, or as many as it can hear and write down.

    Raises:
        UserError: it cannot hear as many as are wanted, or not even one
    """

    def too_long(seconds: float, num_tokens: int) -> Optional[str]:
        if features.pad_seconds and seconds > features.pad_seconds:
            return f"its features are padded to {features.pad_seconds:g} s"
        samples = torch.tensor(round(seconds * features.sample_rate))
        return recogniser.too_long(int(num_frames(samples, features)), num_tokens)

    if wanted is not None:
        if why := too_long(wanted, 1):
            raise UserError(f"pieces of max_seconds {wanted:g} s are too long for this model: {why}")
        return wanted
    most = round(USUAL_PIECE / _STEP)
    steps = bisect.bisect_left(
        range(1, most + 1), True, key=lambda n: too_long(n * _STEP, math.ceil(n * _STEP * _TOKENS)) is not None
    )
    if steps * _STEP < 1:
        raise UserError(f"this model hears less than a second at once: {too_long(1, _TOKENS)}")
    return steps * _STEP

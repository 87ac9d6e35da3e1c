"""Samples as features of width 1, for encoders that take audio as it is (Wav2Vec2FeatureExtractor of `transformers`).

Shape suffixes: N utterances, S samples.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def waveform(audio_NS: Tensor, lengths_N: Tensor, normalised: bool) -> tuple[Tensor, Tensor]:
    """The samples x, or (x - mean) / sqrt(variance + 1e-7) with mean and variance over the utterance's samples.

    Args:
        audio_NS: Samples in [-1, 1], padded at the end with anything.
        lengths_N: Samples of each utterance.

    Returns:
        features_NS1 in float32, zero beyond each utterance, and the number of samples of each utterance.
    """
    features_NS = audio_NS.new_zeros(len(lengths_N), max(1, int(lengths_N.max())), dtype=torch.float32)
    # one at a time: an utterance comes out the same to the bit in any batch
    for features_S, audio_S, length in zip(features_NS, audio_NS, lengths_N.tolist()):
        if length:
            samples_S = audio_S[:length].float()
            if normalised:
                variance, mean = torch.var_mean(samples_S, correction=0)
                samples_S = (samples_S - mean) / (variance + 1e-7).sqrt()
            features_S[:length] = samples_S
    return features_NS[:, :, None], lengths_N

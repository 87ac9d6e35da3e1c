"""The decoder's choice among texts that another search has found.

Shape letters: N utterances, T encoder frames, D encoder width, P prompt tokens, K texts of an utterance, U tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from moe_asr.decoding.search_config import Scored, SearchConfig
from moe_asr.models.encoder_decoder import EncoderDecoder


def rescore(
    model: EncoderDecoder,
    states_NTD: Tensor,
    lengths_N: Tensor,
    prompt_NP: Tensor,
    texts: Sequence[Sequence[Scored]],
    config: SearchConfig,
) -> list[list[Scored]]:
    """(1 - w) log P of the decoder + w * first score + (1 - w) length_bonus |y| of each text, the best text first.

    The first score has the length bonus in it. All texts of all utterances are scored in one call.

    Args:
        texts: of each utterance one at least
    """
    most = max(map(len, texts))
    padded = [[*row, *[Scored((), 0.0)] * (most - len(row))] for row in texts]
    lengths_NK = torch.tensor([[len(text.tokens) for text in row] for row in padded])
    tokens_NKU = torch.zeros(*lengths_NK.shape, int(lengths_NK.max()), dtype=torch.int64)
    tokens_NKU[torch.arange(tokens_NKU.shape[2]) < lengths_NK[:, :, None]] = torch.tensor(
        [token for row in padded for text in row for token in text.tokens], dtype=torch.int64
    )
    device, weight = states_NTD.device, config.ctc_weight
    decoder_NK = model.score(states_NTD, lengths_N, prompt_NP, tokens_NKU.to(device), lengths_NK.to(device))
    decoder_NK = decoder_NK.cpu() + config.length_bonus * lengths_NK
    return [
        sorted(
            (
                dataclasses.replace(text, score=(1 - weight) * score + weight * text.score if weight else score)
                for text, score in zip(row, scores)
            ),
            key=lambda text: -text.score,
        )
        for row, scores in zip(texts, decoder_NK.tolist())
    ]

"""A decoder, one token after another, with and without a cache.

Shape letters: N utterances, T frames of speech as the decoder sees them, D their width, K hypotheses of an utterance,
P new tokens, U all tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Optional, Protocol

import torch
from torch import Tensor

from moe_asr.decoding.llm_steps import LMSteps
from moe_asr.errors import UserError
from moe_asr.experts import Adapter
from moe_asr.models.encoder_decoder import EncoderDecoder
from moe_asr.models.speech_llm import SpeechLLM
from moe_asr.models.transformer_decoder import TransformerDecoder

GENERATORS = (EncoderDecoder, SpeechLLM)
"""Models that predict one token after another."""


class Steps(Protocol):
    """Hypotheses of a batch which a search lets grow; there is an empty one of each utterance at first."""

    def step(self, tokens_NKP: Tensor) -> Tensor:
        """logits_NKV after P more tokens of each hypothesis."""

    def reorder(self, index_NK: Tensor) -> None:
        """Hypothesis k of utterance n goes on from what was hypothesis `index[n, k]`."""

    def select(self, rows: Tensor) -> None:
        """Keeps only the utterances `rows`."""


class CachedSteps:
    """Keys and values of earlier tokens are kept; a step costs what its new tokens cost.

    Args:
        max_tokens: of a hypothesis, prompt included
        adapter: is told which utterances stay when others leave, so that its experts know the batch
    """

    def __init__(
        self,
        decoder: TransformerDecoder,
        states_NTD: Tensor,
        lengths_N: Tensor,
        max_tokens: int,
        adapter: Optional[Adapter] = None,
    ) -> None:
        self._decoder, self._adapter = decoder, adapter
        self._state = decoder.start(states_NTD, lengths_N, max_tokens)

    def step(self, tokens_NKP: Tensor) -> Tensor:
        return self._decoder.step(tokens_NKP, self._state)

    def reorder(self, index_NK: Tensor) -> None:
        self._state.reorder(index_NK)

    def select(self, rows: Tensor) -> None:
        self._state.select(rows)
        if self._adapter:
            self._adapter.narrow(rows)


class WholePrefixSteps:
    """Every step runs the decoder on all tokens so far, for layers whose output at a token depends on later tokens.

    One hypothesis of each utterance runs at a time, so that such layers see N rows of one text each, as in training.
    """

    def __init__(
        self, decoder: TransformerDecoder, states_NTD: Tensor, lengths_N: Tensor, adapter: Optional[Adapter] = None
    ) -> None:
        self._decoder, self._states, self._lengths, self._adapter = decoder, states_NTD, lengths_N, adapter
        self._tokens_NKU: Optional[Tensor] = None

    def step(self, tokens_NKP: Tensor) -> Tensor:
        before = [] if self._tokens_NKU is None else [self._tokens_NKU]
        self._tokens_NKU = torch.cat([*before, tokens_NKP], dim=2)
        last_NKD = torch.stack(
            [self._decoder(tokens_NU, self._states, self._lengths)[:, -1] for tokens_NU in self._tokens_NKU.unbind(1)],
            dim=1,
        )
        return self._decoder.logits(last_NKD)

    def reorder(self, index_NK: Tensor) -> None:
        self._tokens_NKU = self._tokens_NKU.take_along_dim(index_NK[:, :, None], 1)

    def select(self, rows: Tensor) -> None:
        self._tokens_NKU, self._states = self._tokens_NKU[rows], self._states[rows]
        self._lengths = self._lengths[rows]
        if self._adapter:
            self._adapter.narrow(rows)


def start(
    model: EncoderDecoder | SpeechLLM,
    states_NTD: Tensor,
    lengths_N: Tensor,
    max_tokens: int,
    adapter: Optional[Adapter] = None,
    cache: bool = True,
) -> Steps:
    """An empty hypothesis of each utterance.

    Args:
        states_NTD: what the decoder sees of the speech, and `lengths_N` of it real
        max_tokens: of a hypothesis, prompt included
        cache: of what was computed for earlier tokens

    Raises:
        UserError: a language model is to have no cache
    """
    if isinstance(model, SpeechLLM):
        if not cache:
            raise UserError(
                "a speech_llm always decodes with a cache: set router threshold_over: frame and granularity: frame for "
                "experts on its language model"
            )
        return LMSteps(model, states_NTD, lengths_N, adapter)
    if cache:
        return CachedSteps(model.decoder, states_NTD, lengths_N, max_tokens, adapter)
    return WholePrefixSteps(model.decoder, states_NTD, lengths_N, adapter)

"""The language model of a speech LLM, one token after another, behind the speech that it has heard.

Shape letters: N utterances, L frames of projected speech, M positions of the prefix, W width of the language model,
K hypotheses of an utterance, P prompt tokens, C cached positions, V vocabulary.
"""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor

from moe_asr.experts import Adapter
from moe_asr.models.speech_llm import SpeechLLM
from moe_asr.models.time_conv import real_mask

STREAM = "lm"


class LMSteps:
    """Fulfils `Steps`: the prefix runs once, then one token of each hypothesis at a time.

    An utterance has one row in the cache of keys and values: its prefix, then the K tokens of each step, one behind the
    other. Which of them a hypothesis is made of is said by the mask of attention alone. So the prefix is stored once,
    nothing is copied when hypotheses change places, and linear layers and their experts see (N, K, W), hypotheses where
    there are frames otherwise. Positions count from the start of each utterance, whatever the padding.

    Args:
        speech_NLW: of `SpeechLLM.speech`, and `lengths_N` of it real
        adapter: is told which utterances stay, and how many tokens of each the language model sees at a time
    """

    def __init__(
        self, model: SpeechLLM, speech_NLW: Tensor, lengths_N: Tensor, adapter: Optional[Adapter] = None
    ) -> None:
        from transformers import DynamicCache  # slow to import

        self._model, self._adapter, self._speech = model, adapter, (speech_NLW, lengths_N)
        self._cache, self._output_weight = DynamicCache(), model.output_weight
        self._seen_NKC: Optional[Tensor] = None  # True on what each hypothesis is made of
        self._told = 0  # tokens at a time that the adapter knows of

    def step(self, tokens_NKP: Tensor) -> Tensor:
        """logits_NKV; the first call takes the prompt, (N, 1, P), later ones a token each, (N, K, 1)."""
        if self._seen_NKC is None:
            return self._start(tokens_NKP.squeeze(1))
        tokens_NK = tokens_NKP.squeeze(2)
        N, K = tokens_NK.shape
        own_NKK = torch.eye(K, dtype=torch.bool, device=tokens_NK.device).expand(N, -1, -1)
        self._seen_NKC = torch.cat([self._seen_NKC, own_NKK], 2)
        if K != self._told:
            self._tell(torch.full_like(self._length_N, K))
            self._told = K
        hidden_NKW = self._run(
            self._model.embed(tokens_NK),
            attention_mask=self._seen_NKC[:, None],
            position_ids=self._length_N[:, None].expand(-1, K),
        )
        self._length_N = self._length_N + 1
        return self._model.logits(hidden_NKW, self._output_weight)

    def reorder(self, index_NK: Tensor) -> None:
        self._seen_NKC = self._seen_NKC.take_along_dim(index_NK[:, :, None], 1)

    def select(self, rows: Tensor) -> None:
        self._cache.batch_select_indices(rows)
        self._seen_NKC, self._length_N = self._seen_NKC[rows], self._length_N[rows]
        if self._adapter:
            self._adapter.narrow(rows)

    def _start(self, prompt_NP: Tensor) -> Tensor:
        """Padding comes behind the prefix, so that attention to what came before sees none of it."""
        prefix_NMW, self._length_N = self._model.prefix(*self._speech, prompt_NP)
        self._speech = None
        self._tell(self._length_N)
        hidden_NMW = self._run(prefix_NMW)
        self._seen_NKC = real_mask(self._length_N, prefix_NMW.shape[1])[:, None]
        last_N1W = hidden_NMW.take_along_dim(self._length_N[:, None, None] - 1, 1)
        return self._model.logits(last_N1W, self._output_weight)

    def _run(self, inputs: Tensor, **where: Tensor) -> Tensor:
        return self._model.lm(
            inputs_embeds=inputs, past_key_values=self._cache, use_cache=True, **where
        ).last_hidden_state

    def _tell(self, lengths_N: Tensor) -> None:
        if self._adapter:
            self._adapter.set_lengths(STREAM, lengths_N)

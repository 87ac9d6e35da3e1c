"""A recogniser, perhaps with experts, made ready to turn batches into texts; and how fast it does that."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Optional

import torch
from torch import Tensor

from moe_asr.data.batches import Batch
from moe_asr.data.features import log_mel
from moe_asr.decoding.prompt_language import LABEL, PromptLanguage
from moe_asr.decoding.search import Search
from moe_asr.decoding.search_config import Scored, SearchConfig
from moe_asr.errors import UserError
from moe_asr.methods.adaptation import AdaptedRecogniser
from moe_asr.methods.routes import RouteOptions
from moe_asr.models.folder import LoadedModel, load_model
from moe_asr.models.interface import Recogniser
from moe_asr.models.precision import Precision, computing_in, lower_weights
from moe_asr.scoring.hallucination import LOOP, repeats


def load_recogniser(folder: str) -> LoadedModel:
    """A model folder that texts can be got from.

    Raises:
        UserError: it holds no recogniser, or one that was never trained; see also `load_model`
    """
    loaded = load_model(folder)
    if not isinstance(loaded.model, Recogniser):
        raise UserError(f"{folder} is no recogniser; give the model folder of one")
    if loaded.config.untrained:
        raise UserError(f"{folder}: its projector is still random: train it, see bin/import_speech_llm")
    return loaded


class BatchDecoder:
    """Finds the texts of batches; the model goes to the device and into evaluation mode.

    Args:
        loaded: from `load_recogniser`
        adapted: the same model with experts; None for none
        options: where the domain comes from, if not as in training
        language: that multilingual models are told: label (that of each utterance), detect, or a code for all. What is
            detected is the most probable language of the experts' route, if that is one of languages, and otherwise of
            the model's own posteriors
        precision: of the products; for bf16 the weights are put into it at the first batch

    Raises:
        UserError: the model cannot do this search, or does not know the language
    """

    def __init__(
        self,
        loaded: LoadedModel,
        adapted: Optional[AdaptedRecogniser],
        search: SearchConfig,
        device: torch.device,
        options: RouteOptions = RouteOptions(),
        precision: Precision = "fp32",
        language: str = LABEL,
    ) -> None:
        self.loaded, self.adapted, self.device = loaded, adapted, device
        self.options, self.precision = options, precision
        self.language = PromptLanguage(loaded.model, adapted, options, language)
        (adapted or loaded.model).to(device).eval()
        whole_prefix = adapted is not None and adapted.needs_whole_prefix
        self.search = Search(loaded.model, search, loaded.tokens, cache=not whole_prefix)
        self.speed = Speed()
        self._lowered = False

    @torch.inference_mode()
    def __call__(self, batch: Batch, seconds: Iterable[float]) -> list[Scored]:
        """The best text of each utterance.

        Args:
            seconds: how long the utterances are, for the speed
        """
        if not self._lowered:  # not earlier, so that whoever asks for the identity of the weights gets that on disk
            lower_weights(self.loaded.model, self.precision)
            self._lowered = True
        with self.speed.measured(seconds):
            batch = batch.to(self.device)
            features_NTF, lengths_N = log_mel(batch.audio_NS, batch.audio_lengths_N, self.loaded.config.features)
            batch = self.language.given(batch)
            with computing_in(self.precision, self.device):
                return self._find(features_NTF, lengths_N, batch)

    def _find(self, features_NTF: Tensor, lengths_N: Tensor, batch: Batch) -> list[Scored]:
        adapted, route, domains_NG = self.adapted, nullcontext(), None
        if adapted is not None:
            domains_NG = adapted.domain_weights(batch, features_NTF, lengths_N, self.options)
            route = adapted.route(batch, lengths_N, domains_NG, self.options.fallback)
        with route:
            encoded, heard = None, self.language.by_route(domains_NG)
            if self.language.asks_model:
                encoded = self.loaded.model.encode(features_NTF, lengths_N)
                heard = self.language.by_model(*encoded)
            if heard:
                batch = replace(batch, languages=[code for code, _ in heard])
            found = self.search(features_NTF, lengths_N, batch, adapted and adapted.adapter, encoded)
            best = [texts[0] for texts in found]
            if not heard:
                return best
            return [replace(text, language=code, language_probability=p) for text, (code, p) in zip(best, heard)]


def signs(found: Scored) -> dict[str, bool]:
    """What is suspicious about a text: it is `truncated` at the limit on tokens, or `looping`; only what is true."""
    looping = repeats(found.tokens) >= LOOP
    return {**({"truncated": True} if found.truncated else {}), **({"looping": True} if looping else {})}


class Speed:
    """Time from the audio of a batch to its texts; loading, and what an earlier run has decoded, do not count."""

    def __init__(self) -> None:
        self._elapsed, self._audio, self._utterances = 0.0, 0.0, 0

    @contextmanager
    def measured(self, seconds: Iterable[float]) -> Iterator[None]:
        """Counts the time inside; `seconds` is the audio of each utterance."""
        started = time.perf_counter()
        yield
        self._elapsed += time.perf_counter() - started
        seconds = list(seconds)
        self._audio, self._utterances = self._audio + sum(seconds), self._utterances + len(seconds)

    @property
    def per_utterance(self) -> Optional[float]:
        """Seconds that an utterance took; None without any."""
        return self._elapsed / self._utterances if self._utterances else None

    @property
    def factor(self) -> float:
        """Times faster than real time."""
        return self._audio / self._elapsed if self._utterances else 0.0

    def __str__(self) -> str:
        return f"{self.factor:{'.0f' if self.factor >= 10 else '.1f'}} times faster than real time"

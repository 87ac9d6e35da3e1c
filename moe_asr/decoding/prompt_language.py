"""Which language a multilingual model is told that it hears: the labelled one, one for all, or what it detects.

Shape letters: N utterances, T frames, D width of encoder states, G domains, L languages.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Optional

from torch import Tensor

from moe_asr.data.batches import Batch
from moe_asr.data.languages import find_language
from moe_asr.errors import UserError
from moe_asr.methods.adaptation import AdaptedRecogniser
from moe_asr.methods.routes import RouteOptions
from moe_asr.models.interface import Recogniser

LABEL, DETECT = "label", "detect"
Heard = list[tuple[str, float]]
"""Code and probability of the language of each utterance."""


class PromptLanguage:
    """Chooses the language of each utterance of a batch.

    Args:
        model: the recogniser, with experts or without
        adapted: its experts; where their route tells languages apart without a label, that decides what is detected,
            so that experts and prompt agree
        options: of the route
        choice: label, detect, or a code for all

    Raises:
        UserError: the model has no languages, or not this one
    """

    def __init__(
        self, model: Recogniser, adapted: Optional[AdaptedRecogniser], options: RouteOptions, choice: str = LABEL
    ) -> None:
        self._model, self._adapted = model, adapted
        self._codes = list(getattr(model, "languages", {}))
        self._fixed = None
        if choice != LABEL and not self._codes:
            raise UserError(f"this model is told no language: leave language out, which is '{choice}'")
        if choice not in (LABEL, DETECT):
            self._fixed = find_language(self._codes, choice)
            if self._fixed is None:
                raise UserError(f"the model has no language '{choice}'; it knows {', '.join(self._codes)}")
        source = None
        if choice == DETECT and adapted is not None and adapted.config.domain_key == "language":
            source = adapted.domain_source(options)
        self._by_route = source in ("posterior", "model", "router")
        self.asks_model = choice == DETECT and not self._by_route
        """Whether the model, with its experts, is asked for each batch."""

    def given(self, batch: Batch) -> Batch:
        """The batch with the language that is one for all; as domain of the experts too, where these are languages."""
        if self._fixed is None:
            return batch
        batch = replace(batch, languages=[self._fixed] * len(batch))
        if self._adapted is None or self._adapted.config.domain_key != "language":
            return batch
        codes = [find_language(self._codes, name) for name in self._adapted.config.domains]
        domain = codes.index(self._fixed) if self._fixed in codes else -1
        return replace(batch, domains_N=batch.domains_N.new_full((len(batch),), domain))

    def by_route(self, domains_NG: Optional[Tensor]) -> Heard:
        """The most probable domain of each utterance, if that is to be its language; otherwise none."""
        if not self._by_route:
            return []
        names = [find_language(self._codes, name) or name for name in self._adapted.config.domains]
        return _best(domains_NG, names)

    def by_model(self, states_NTD: Tensor, lengths_N: Tensor) -> Heard:
        """The most probable language by the model's own posteriors."""
        return _best(self._model.language_posteriors(states_NTD, lengths_N), self._codes)


def _best(p_NL: Tensor, names: list[str]) -> Heard:
    best, index = p_NL.max(1)
    return [(names[i], p) for i, p in zip(index.tolist(), best.tolist())]

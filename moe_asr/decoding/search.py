"""From features to hypotheses: the search that a configuration names, on the models that can do it.

Shape letters: N utterances, T frames, F mel bins, D encoder width, V vocabulary, P prompt tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Optional

from torch import Tensor

from moe_asr.data.tokens import TokenSet
from moe_asr.decoding import attention, ctc
from moe_asr.decoding.ctc_prefix import CTCPrefixScorer
from moe_asr.decoding.lattice_k2 import LatticeSearch
from moe_asr.decoding.rescoring import rescore
from moe_asr.decoding.search_config import Scored, SearchConfig
from moe_asr.decoding.steps import GENERATORS, start
from moe_asr.errors import UserError
from moe_asr.experts import Adapter
from moe_asr.models.encoder_decoder import EncoderDecoder
from moe_asr.models.interface import Recogniser, Targets
from moe_asr.models.speech_llm import SpeechLLM

CtcSearch = Callable[[Tensor, Tensor], list[list[Scored]]]


class Search:
    """Finds the texts of one batch after the other.

    Args:
        model: in evaluation mode
        tokens: its token set, which a lattice needs
        cache: whether the decoder keeps what it has computed for earlier tokens; not for layers that look at the whole
            text at each token

    Raises:
        UserError: the model cannot do this search, or k2 or the lang folder is missing
    """

    def __init__(
        self, model: Recogniser, config: SearchConfig, tokens: Optional[TokenSet] = None, cache: bool = True
    ) -> None:
        kinds, has_ctc = search_kinds(model), "prefix_beam" in search_kinds(model)
        if config.kind not in kinds:
            raise UserError(f"this model has no search of kind {config.kind}; it has {', '.join(kinds)}")
        if config.kind == "beam" and config.ctc_weight and not has_ctc:
            raise UserError(f"this model has no CTC output: leave search.ctc_weight at 0, not {config.ctc_weight}")
        self.model, self.config, self.cache = model, config, cache
        self._ctc_texts = _ctc_search(model, config, tokens)

    def __call__(
        self,
        features_NTF: Tensor,
        feature_lengths_N: Tensor,
        batch: Targets,
        adapter: Optional[Adapter] = None,
        encoded: Optional[tuple[Tensor, Tensor]] = None,
    ) -> list[list[Scored]]:
        """Hypotheses of each utterance, one at least, the best first.

        Args:
            batch: what the prompts are made from
            adapter: of the experts on the model; is told when finished utterances leave the batch
            encoded: encoder states and lengths of an encoder-decoder, where they are there already
        """
        model, config = self.model, self.config
        if not isinstance(model, GENERATORS):
            return self._ctc_texts(*model.log_probs(features_NTF, feature_lengths_N))
        hear = model.speech if isinstance(model, SpeechLLM) else model.encode
        states_NTD, lengths_N = encoded or hear(features_NTF, feature_lengths_N)
        if config.kind not in ("greedy", "beam"):
            texts = self._ctc_texts(model.ctc_log_probs(states_NTD), lengths_N)
            if config.kind in ("prefix_beam", "lattice"):
                return texts
            return rescore(model, states_NTD, lengths_N, model.prompts(batch), texts, config)
        prompt_NP, limits_N = model.prompts(batch), model.max_tokens(lengths_N)
        most = prompt_NP.shape[1] + int(limits_N.max())
        steps = start(model, states_NTD, lengths_N, most, adapter, self.cache)
        rules = attention.TokenRules(model.end, model.suppress, model.begin_suppress)
        if config.kind == "greedy":
            return [[text] for text in attention.greedy(steps, prompt_NP, limits_N, rules)]
        scorer = None
        if config.ctc_weight:
            scorer = CTCPrefixScorer(model.ctc_log_probs(states_NTD), lengths_N, model.blank)
        return attention.beam(steps, prompt_NP, limits_N, rules, config, scorer)


def _ctc_search(model: Recogniser, config: SearchConfig, tokens: Optional[TokenSet]) -> CtcSearch:
    """The search over CTC log-probabilities, also where the decoder chooses among its texts."""
    if config.kind in ("lattice", "lattice_rescore"):
        lattice = LatticeSearch(config, tokens, next(model.parameters()).device)
        if config.kind == "lattice_rescore":
            return lattice.n_best
        return lambda log_probs_NTV, lengths_N: [[text] for text in lattice.one_best(log_probs_NTV, lengths_N)]
    if config.kind == "greedy":
        return lambda log_probs_NTV, lengths_N: [
            [Scored(tuple(text))] for text in ctc.greedy(log_probs_NTV, lengths_N, model.blank)
        ]
    return lambda log_probs_NTV, lengths_N: ctc.prefix_beam(log_probs_NTV, lengths_N, config, model.blank)


def search_kinds(model: Recogniser) -> tuple[str, ...]:
    """The kinds of search that a model can do."""
    has_decoder = isinstance(model, GENERATORS)
    has_ctc = not has_decoder or isinstance(model, EncoderDecoder) and model.ctc_head is not None
    kinds = ["greedy"]
    kinds += ["beam"] if has_decoder else []
    kinds += ["prefix_beam", "lattice"] if has_ctc else []
    kinds += ["rescore", "lattice_rescore"] if has_decoder and has_ctc else []
    return tuple(kinds)

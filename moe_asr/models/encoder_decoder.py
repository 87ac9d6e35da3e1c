"""What recognisers with an encoder and a Transformer decoder have in common.

Shape letters: N utterances, T frames, F mel bins, D model width, U tokens, P prompt tokens, K texts, V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import noop_context_fn

from moe_asr.data.languages import find_language
from moe_asr.errors import UserError
from moe_asr.losses.cross_entropy import chunked_cross_entropy
from moe_asr.models.ctc_loss import ctc_loss
from moe_asr.models.interface import ContextFn, Criterion, Loss, Predictions, Recogniser, Targets
from moe_asr.models.time_conv import real_mask
from moe_asr.models.transformer_decoder import TransformerDecoder

LANGUAGE = 1
"""Where in the prompt of a multilingual model the token of the language stands."""


class EncoderDecoder(Recogniser):
    """P(tokens | x) = prod_u p(token_u | prompt, tokens before u, encoder(x)), ended by the token `end`.

        loss = (1 - w) * cross-entropy of tokens and end, label-smoothed  +  w * CTC loss of an output on the encoder

    both in nats, summed over utterances; its count is the number of tokens and ends. A text that CTC cannot align (see
    `ConformerCTC`) adds nothing to the CTC term. Part `accuracy` sums over right tokens, `ctc` is the CTC term.

    A multilingual model has a token for each language, second in the prompt. By what it predicts there it tells what it
    hears, p(l | x) = softmax over these tokens alone; with a `language_weight` v that is trained too, as
    v * -log p(l | x) of each utterance. Part `language` is its share of right utterances times the count.

    Subclasses make `encoder`, `decoder` and perhaps `ctc_head`.

    Args:
        prompt: tokens with which every decoding starts
        end: token that ends a text
        suppress: tokens that are never decoded; `begin_suppress` never first
        ctc_weight: w; 0 for a model without CTC
        label_smoothing: share of the target spread over the vocabulary
        tokens_per_frame: bound of the length of a hypothesis, per encoder frame
        languages: token of each language by its code; where there are some, `prompt` holds any of them second
        language_weight: v
    """

    decoder: TransformerDecoder
    ctc_head: nn.Linear | None

    text_streams = frozenset({"decoder"})

    def __init__(
        self,
        prompt: tuple[int, ...],
        end: int,
        suppress: tuple[int, ...] = (),
        begin_suppress: tuple[int, ...] = (),
        ctc_weight: float = 0.0,
        label_smoothing: float = 0.0,
        tokens_per_frame: float = 1.0,
        ctc_backend: str = "torch",
        languages: Mapping[str, int] | None = None,
        language_weight: float = 0.0,
    ) -> None:
        super().__init__()
        if languages and (len(prompt) <= LANGUAGE or prompt[LANGUAGE] not in languages.values()):
            raise UserError("languages: the second token of the prompt must be that of a language")
        if language_weight < 0 or language_weight and not languages:
            raise UserError(f"language_weight is {language_weight}: it must not be negative, and 0 without languages")
        self.languages, self.language_weight = dict(languages or {}), language_weight
        if not 0 <= ctc_weight < 1 or not 0 <= label_smoothing < 1:
            raise UserError(
                f"ctc_weight and label_smoothing must be from 0 to below 1, not {ctc_weight} and {label_smoothing}"
            )
        self.ctc_head = None
        self.prompt, self.end, self.suppress, self.begin_suppress = prompt, end, suppress, begin_suppress
        self.ctc_weight, self.label_smoothing, self.ctc_backend = ctc_weight, label_smoothing, ctc_backend
        self.tokens_per_frame = tokens_per_frame

    def forward(
        self,
        features_NTF: Tensor,
        feature_lengths_N: Tensor,
        batch: Targets,
        criterion: Criterion = chunked_cross_entropy,
    ) -> Loss:
        """The loss, with another criterion in the place of the cross-entropy if one is given."""
        states_NTD, lengths_N = self.encode(features_NTF, feature_lengths_N)
        prompt_NP, hidden_NUD, said = self._decoded(states_NTD, lengths_N, batch)
        smoothing = self.label_smoothing if self.training else 0.0
        total, parts = criterion(said.hidden_MD, said.weight_VD, said.targets_M, smoothing)
        if self.ctc_head is not None:
            log_probs_NTV = self.ctc_log_probs(states_NTD)
            ctc_N, fits_N = ctc_loss(
                log_probs_NTV, lengths_N, batch.tokens_NU, batch.token_lengths_N, self.blank, self.ctc_backend
            )
            ctc = ctc_N.sum()
            total = (1 - self.ctc_weight) * total + self.ctc_weight * ctc
            parts |= {"ctc": ctc.detach(), "ctc_too_long": batch.token_lengths_N.masked_fill(fits_N, 0).sum()}
        count = torch.tensor(said.targets_M.numel(), device=total.device)
        if self.languages:
            log_p_NL, told_N = self._log_languages(hidden_NUD[:, 0]), self._numbers(prompt_NP)
            total = total + self.language_weight * nn.functional.nll_loss(log_p_NL, told_N, reduction="sum")
            parts["language"] = (log_p_NL.argmax(1) == told_N).float().mean() * count
        return Loss(total, count, parts)

    def predictions(self, features_NTF: Tensor, feature_lengths_N: Tensor, batch: Targets) -> Predictions:
        return self._decoded(*self.encode(features_NTF, feature_lengths_N), batch)[2]

    def _decoded(self, states_NTD: Tensor, lengths_N: Tensor, batch: Targets) -> tuple[Tensor, Tensor, Predictions]:
        """Prompts (N, P), decoder states for prompts and texts (N, P + U, D), and what they predict."""
        prompt_NP = self.prompts(batch)
        hidden_NUD = self.decoder(torch.cat([prompt_NP, batch.tokens_NU], 1), states_NTD, lengths_N)
        hidden_MD, targets_M = self._predictions(hidden_NUD, batch.tokens_NU, batch.token_lengths_N)
        return prompt_NP, hidden_NUD, Predictions(hidden_MD, self.decoder.embed_tokens.weight, targets_M)

    def set_gradient_checkpointing(self, enabled: bool, context_fn: ContextFn = noop_context_fn) -> None:
        super().set_gradient_checkpointing(enabled, context_fn)
        self.decoder.set_gradient_checkpointing(enabled, context_fn)

    def prompts(self, batch: Targets) -> Tensor:
        """(N, P) tokens with which each utterance of a batch starts; those of a multilingual model name its language.

        Raises:
            UserError: a language has no token
        """
        device = batch.tokens_NU.device
        prompt_NP = torch.tensor(self.prompt, device=device).expand(batch.tokens_NU.shape[0], -1)
        if not self.languages:
            return prompt_NP
        codes = [find_language(self.languages, name) for name in batch.languages]
        if None in codes:
            unknown = batch.languages[codes.index(None)]
            raise UserError(f"the model has no token for language '{unknown}'; it knows {', '.join(self.languages)}")
        prompt_NP = prompt_NP.clone()
        prompt_NP[:, LANGUAGE] = torch.tensor([self.languages[code] for code in codes], device=device)
        return prompt_NP

    @torch.no_grad()
    def language_posteriors(self, states_NTD: Tensor, lengths_N: Tensor) -> Tensor:
        """p(l | x), (N, L) for the languages in their order: what the decoder predicts behind its first token."""
        start_N1 = torch.full((len(states_NTD), 1), self.prompt[0], device=states_NTD.device)
        return self._log_languages(self.decoder(start_N1, states_NTD, lengths_N)[:, 0]).exp()

    def _log_languages(self, hidden_ND: Tensor) -> Tensor:
        """Log-probabilities of the languages alone, (N, L)."""
        ids_L = torch.tensor(list(self.languages.values()), device=hidden_ND.device)
        rows_LD = self.decoder.embed_tokens.weight[ids_L].to(hidden_ND.dtype)
        return nn.functional.linear(hidden_ND, rows_LD).float().log_softmax(-1)

    def _numbers(self, prompt_NP: Tensor) -> Tensor:
        """Which of the languages each prompt names, (N)."""
        ids_L = torch.tensor(list(self.languages.values()), device=prompt_NP.device)
        return (prompt_NP[:, LANGUAGE, None] == ids_L).int().argmax(1)

    def stream_of(self, layer: str) -> str:
        # keys and values of cross-attention are made from encoder states
        return "decoder" if re.match(r"decoder\.(?!.*\.encoder_attn\.[kv]_proj$)", layer) else "default"

    def stream_lengths(self, feature_lengths_N: Tensor, batch: Targets | None = None) -> dict[str, Tensor]:
        lengths = super().stream_lengths(feature_lengths_N)
        return lengths if batch is None else {**lengths, "decoder": batch.token_lengths_N + len(self.prompt)}

    def too_long(self, feature_frames: int, num_tokens: int) -> str | None:
        if why := super().too_long(feature_frames, num_tokens):
            return why
        room = self.decoder.config.max_tokens - len(self.prompt)
        return f"its text has {num_tokens} tokens, the decoder has room for {room}" if num_tokens > room else None

    def max_tokens(self, lengths_N: Tensor) -> Tensor:
        """Longest hypothesis of each utterance from its encoder frames, without the prompt, the end counted as one."""
        room = self.decoder.config.max_tokens - len(self.prompt)
        return (lengths_N * self.tokens_per_frame).ceil().long().clamp(1, room)

    def log_probs(self, features_NTF: Tensor, feature_lengths_N: Tensor) -> tuple[Tensor, Tensor]:
        states_NTD, lengths_N = self.encode(features_NTF, feature_lengths_N)
        return self.ctc_log_probs(states_NTD), lengths_N

    def ctc_log_probs(self, states_NTD: Tensor) -> Tensor:
        """Log-probabilities of CTC, (N, T, V) in float32.

        Raises:
            UserError: the model was trained without CTC
        """
        if self.ctc_head is None:
            raise UserError("this model has no CTC output: search by attention (greedy or beam, ctc_weight 0)")
        return self.ctc_head(states_NTD).float().log_softmax(-1)

    @torch.no_grad()
    def score(
        self, states_NTD: Tensor, lengths_N: Tensor, prompt_NP: Tensor, tokens_NKU: Tensor, token_lengths_NK: Tensor
    ) -> Tensor:
        """log P(text | x) of K given texts for each utterance, the end included: (N, K)."""
        scores = []
        for tokens_NU, token_lengths_N in zip(tokens_NKU.unbind(1), token_lengths_NK.unbind(1)):
            inside_NU = real_mask(token_lengths_N + 1, tokens_NU.shape[1] + 1)
            hidden_NUD = self.decoder(torch.cat([prompt_NP, tokens_NU], 1), states_NTD, lengths_N)
            hidden_MD, targets_M = self._predictions(hidden_NUD, tokens_NU, token_lengths_N)
            log_p_M = -nn.functional.cross_entropy(self.decoder.logits(hidden_MD), targets_M, reduction="none")
            scores.append(log_p_M.new_zeros(inside_NU.shape).masked_scatter(inside_NU, log_p_M).sum(1))
        return torch.stack(scores, 1)

    def _predictions(self, hidden_NUD: Tensor, tokens_NU: Tensor, token_lengths_N: Tensor) -> tuple[Tensor, Tensor]:
        """Decoder states before each token and each end, padding left out, and what comes there: (M, D) and (M).

        Args:
            hidden_NUD: of the decoder, for prompts and tokens
        """
        targets_NU = torch.cat([tokens_NU, tokens_NU.new_zeros(len(tokens_NU), 1)], 1)
        targets_NU.scatter_(1, token_lengths_N[:, None], self.end)
        inside_NU = real_mask(token_lengths_N + 1, targets_NU.shape[1])
        return hidden_NUD[:, -targets_NU.shape[1] :][inside_NU], targets_NU[inside_NU]

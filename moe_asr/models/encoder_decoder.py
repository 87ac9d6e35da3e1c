"""What recognisers with an encoder and a Transformer decoder have in common.

Shape letters: N utterances, T frames, F mel bins, D model width, U tokens, P prompt tokens, K texts, V vocabulary.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import noop_context_fn

from moe_asr.errors import UserError
from moe_asr.losses.cross_entropy import chunked_cross_entropy
from moe_asr.models.ctc_loss import ctc_loss
from moe_asr.models.interface import ContextFn, Loss, Recogniser, Targets
from moe_asr.models.time_conv import real_mask
from moe_asr.models.transformer_decoder import TransformerDecoder


class EncoderDecoder(Recogniser):
    """P(tokens | x) = prod_u p(token_u | prompt, tokens before u, encoder(x)), ended by the token `end`.

        loss = (1 - w) * cross-entropy of tokens and end, label-smoothed  +  w * CTC loss of an output on the encoder

    both in nats, summed over utterances; its count is the number of tokens and ends. A text that CTC cannot align (see
    `ConformerCTC`) adds nothing to the CTC term. Part `accuracy` sums over right tokens, `ctc` is the CTC term.

    Subclasses make `encoder`, `decoder` and perhaps `ctc_head`.

    Args:
        prompt: tokens with which every decoding starts
        end: token that ends a text
        suppress: tokens that are never decoded; `begin_suppress` never first
        ctc_weight: w; 0 for a model without CTC
        label_smoothing: share of the target spread over the vocabulary
        tokens_per_frame: bound of the length of a hypothesis, per encoder frame
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
    ) -> None:
        super().__init__()
        if not 0 <= ctc_weight < 1 or not 0 <= label_smoothing < 1:
            raise UserError(
                f"ctc_weight and label_smoothing must be from 0 to below 1, not {ctc_weight} and {label_smoothing}"
            )
        self.ctc_head = None
        self.prompt, self.end, self.suppress, self.begin_suppress = prompt, end, suppress, begin_suppress
        self.ctc_weight, self.label_smoothing, self.ctc_backend = ctc_weight, label_smoothing, ctc_backend
        self.tokens_per_frame = tokens_per_frame

    def forward(self, features_NTF: Tensor, feature_lengths_N: Tensor, batch: Targets) -> Loss:
        states_NTD, lengths_N = self.encode(features_NTF, feature_lengths_N)
        hidden_MD, targets_M = self._predictions(
            states_NTD, lengths_N, self.prompts(batch), batch.tokens_NU, batch.token_lengths_N
        )
        total, correct = chunked_cross_entropy(
            hidden_MD, self.decoder.embed_tokens.weight, targets_M, self.label_smoothing if self.training else 0.0
        )
        parts = {"accuracy": correct}
        if self.ctc_head is not None:
            log_probs_NTV = self.ctc_log_probs(states_NTD)
            ctc_N, fits_N = ctc_loss(
                log_probs_NTV, lengths_N, batch.tokens_NU, batch.token_lengths_N, self.blank, self.ctc_backend
            )
            ctc = ctc_N.sum()
            total = (1 - self.ctc_weight) * total + self.ctc_weight * ctc
            parts |= {"ctc": ctc.detach(), "ctc_too_long": batch.token_lengths_N.masked_fill(fits_N, 0).sum()}
        return Loss(total, torch.tensor(targets_M.numel(), device=total.device), parts)

    def set_gradient_checkpointing(self, enabled: bool, context_fn: ContextFn = noop_context_fn) -> None:
        super().set_gradient_checkpointing(enabled, context_fn)
        self.decoder.set_gradient_checkpointing(enabled, context_fn)

    def prompts(self, batch: Targets) -> Tensor:
        """(N, P) tokens with which each utterance of a batch starts."""
        prompt_P = torch.tensor(self.prompt, device=batch.tokens_NU.device)
        return prompt_P.expand(batch.tokens_NU.shape[0], -1)

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
            hidden_MD, targets_M = self._predictions(states_NTD, lengths_N, prompt_NP, tokens_NU, token_lengths_N)
            log_p_M = -nn.functional.cross_entropy(self.decoder.logits(hidden_MD), targets_M, reduction="none")
            scores.append(log_p_M.new_zeros(inside_NU.shape).masked_scatter(inside_NU, log_p_M).sum(1))
        return torch.stack(scores, 1)

    def _predictions(
        self, states_NTD: Tensor, lengths_N: Tensor, prompt_NP: Tensor, tokens_NU: Tensor, token_lengths_N: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Decoder states before each token and each end, padding left out, and what comes there: (M, D) and (M)."""
        N, P = prompt_NP.shape
        hidden_NUD = self.decoder(torch.cat([prompt_NP, tokens_NU], 1), states_NTD, lengths_N)[:, P - 1 :]
        targets_NU = torch.cat([tokens_NU, tokens_NU.new_zeros(N, 1)], 1)
        targets_NU.scatter_(1, token_lengths_N[:, None], self.end)
        inside_NU = real_mask(token_lengths_N + 1, targets_NU.shape[1])
        return hidden_NUD[inside_NU], targets_NU[inside_NU]

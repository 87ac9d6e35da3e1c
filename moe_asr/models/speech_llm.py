"""A recogniser made of a frozen speech encoder, a projector, and a frozen causal language model of `transformers`.

Shape letters: N utterances, T frames, F width of the features, D encoder width, L speech frames after the projector,
P prompt tokens, U tokens, Q prompt and text tokens, M positions of the language model, W its width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import noop_context_fn

from moe_asr.errors import UserError
from moe_asr.losses.cross_entropy import chunked_cross_entropy
from moe_asr.models.encoders import EncoderConfig, build_encoder
from moe_asr.models.interface import ContextFn, Criterion, Loss, Predictions, Recogniser, Targets
from moe_asr.models.projector import Projector, ProjectorConfig
from moe_asr.models.time_conv import real_mask

LM_TYPES = ("qwen2", "qwen3", "llama")
"""Language models that this was tried with, by the `model_type` of `transformers`."""


@dataclass(frozen=True)
class SpeechLLMConfig:
    """A speech encoder, a projector and a language model.

    Args:
        encoder: what the encoder is.
        lm: configuration of the language model, as `transformers` writes it.
        projector: size of the projector.
        prompt: what stands around the speech, which is written <speech>; to be read by people.
        before: its tokens before the speech.
        after: its tokens between speech and text.
        end: token that ends a text.
        suppress: tokens that are never decoded.
        tokens_per_frame: bound of the length of a hypothesis, per frame after the projector.
    """

    encoder: EncoderConfig
    lm: dict[str, Any]
    projector: ProjectorConfig = field(default_factory=ProjectorConfig)
    prompt: str = ""
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    end: int = 0
    suppress: tuple[int, ...] = ()
    tokens_per_frame: float = 1.0

    def __post_init__(self):
        if self.lm.get("model_type") not in LM_TYPES:
            found = self.lm.get("model_type")
            raise UserError(f"speech_llm: no language model of type {found}, only {', '.join(LM_TYPES)}")
        for name in ("vocab_size", "max_position_embeddings"):
            if not isinstance(found := self.lm.get(name), int):
                raise UserError(f"speech_llm: {name} of the language model must be a whole number, not {found}")
        rope = self.lm.get("rope_parameters") or self.lm.get("rope_scaling") or {}
        if rope.get("rope_type", rope.get("type")) in ("dynamic", "longrope"):
            raise UserError("speech_llm: positions of this language model depend on the longest utterance of a batch")
        if self.lm.get("use_sliding_window") or "sliding_attention" in (self.lm.get("layer_types") or ()):
            raise UserError("speech_llm: language models with a sliding window are not supported")
        if not self.after:
            raise UserError("speech_llm: put something after <speech> in the prompt, with which the text begins")
        if not self.tokens_per_frame > 0:
            raise UserError(f"speech_llm: tokens_per_frame must be above 0, not {self.tokens_per_frame}")
        for name in ("before", "after", "end", "suppress"):
            value = getattr(self, name)
            for token in value if isinstance(value, tuple) else (value,):
                if not 0 <= token < self.vocab_size:
                    raise UserError(f"speech_llm: {name} names token {token}, but there are 0 to {self.vocab_size - 1}")

    @property
    def vocab_size(self) -> int:
        """Number of tokens, with those that only fill the embedding up."""
        return self.lm["vocab_size"]


class SpeechLLM(Recogniser):
    """P(text | x) by a language model that reads `[before][speech][after][text][end]`, speech = projector(encoder(x)).

    The loss is the cross-entropy of text and end in nats, summed over utterances; its count is the number of tokens and
    ends. Part `accuracy` sums over right tokens.

    Only the projector is trained; encoder and language model have no dropout, and experts may sit on them. The language
    model runs in the number format of its weights. Each utterance's sequence is contiguous and padded at its end, so
    that nothing real ever attends to padding.
    """

    default_targets = (r"projector\.linear[12]",)
    attention_targets = {}
    frozen_parts = ("encoder.", "lm.", "lm_head.")
    text_streams = frozenset({"lm"})
    begin_suppress: tuple[int, ...] = ()

    def __init__(self, config: SpeechLLMConfig) -> None:
        super().__init__()
        self.config, self.end, self.suppress = config, config.end, config.suppress
        self.encoder = build_encoder(config.encoder.without_dropout())
        self.lm = _build_lm(config.lm)
        width = self.lm.config.hidden_size
        self.projector = Projector(config.projector, self.encoder.width, width)
        # No linear layer, since only its weight is used and experts on it would do nothing.
        self.lm_head = None if self.lm.config.tie_word_embeddings else nn.Embedding(config.vocab_size, width)
        for part in (self.encoder, self.lm, *filter(None, [self.lm_head])):
            part.requires_grad_(False)

    def forward(
        self,
        features_NTF: Tensor,
        feature_lengths_N: Tensor,
        batch: Targets,
        criterion: Criterion = chunked_cross_entropy,
    ) -> Loss:
        """The loss, with another criterion in the place of the cross-entropy if one is given."""
        said = self.predictions(features_NTF, feature_lengths_N, batch)
        total, parts = criterion(said.hidden_MD, said.weight_VD, said.targets_M, 0.0)
        return Loss(total, torch.tensor(said.targets_M.numel(), device=total.device), parts)

    def predictions(self, features_NTF: Tensor, feature_lengths_N: Tensor, batch: Targets) -> Predictions:
        speech_NLW, lengths_N = self.speech(features_NTF, feature_lengths_N)
        prompt_NP, (tokens_NU, token_lengths_N) = self.prompts(batch), (batch.tokens_NU, batch.token_lengths_N)
        inputs_NMW, _ = self.prefix(speech_NLW, lengths_N, torch.cat([prompt_NP, tokens_NU], 1))
        hidden_NMW = self.lm(inputs_embeds=inputs_NMW, use_cache=False).last_hidden_state
        # What comes after position m is predicted there: the first token at the last one of the prompt.
        U = tokens_NU.shape[1]
        first_N = lengths_N + len(self.config.before) + prompt_NP.shape[1] - 1
        places_NU = first_N[:, None] + torch.arange(U + 1, device=first_N.device)
        targets_NU = F.pad(tokens_NU, (0, 1)).scatter(1, token_lengths_N[:, None], self.end)
        inside_NU = real_mask(token_lengths_N + 1, U + 1)
        hidden_NUW = hidden_NMW.take_along_dim(places_NU.clamp(max=hidden_NMW.shape[1] - 1)[..., None], 1)
        return Predictions(hidden_NUW[inside_NU], self.output_weight, targets_NU[inside_NU])

    def speech(self, features_NTF: Tensor, feature_lengths_N: Tensor) -> tuple[Tensor, Tensor]:
        """What the language model sees of the speech, speech_NLW in its number format, and frame counts."""
        speech_NLW, lengths_N = self.projector(*self.encode(features_NTF, feature_lengths_N))
        return speech_NLW.to(self.lm.norm.weight.dtype), lengths_N

    def prefix(self, speech_NLW: Tensor, lengths_N: Tensor, tokens_NQ: Tensor) -> tuple[Tensor, Tensor]:
        """[before][speech][tokens] of each utterance without gaps, inputs_NMW, and their lengths.

        Args:
            tokens_NQ: prompt after the speech, perhaps with text; padding at their end counts as real
        """
        N, L, W = speech_NLW.shape
        before_B = torch.tensor(self.config.before, dtype=torch.int64, device=tokens_NQ.device)
        before_NBW = self.embed(before_B).expand(N, -1, -1)
        room_NQW = speech_NLW.new_zeros(N, tokens_NQ.shape[1], W)
        inputs_NMW = torch.cat([before_NBW, speech_NLW, room_NQW], 1)
        start_N = lengths_N + len(before_B)
        places_NQ = start_N[:, None] + torch.arange(tokens_NQ.shape[1], device=start_N.device)
        inputs_NMW = inputs_NMW.scatter(1, places_NQ[..., None].expand(-1, -1, W), self.embed(tokens_NQ))
        return inputs_NMW, start_N + tokens_NQ.shape[1]

    def embed(self, tokens: Tensor) -> Tensor:
        """(...) -> (..., W) in the number format of the norms, in which layers are summed up, as `speech` is."""
        return self.lm.embed_tokens(tokens).to(self.lm.norm.weight.dtype)

    @property
    def output_weight(self) -> Tensor:
        """(V, W); a quantised one is unpacked each time."""
        return (self.lm.embed_tokens if self.lm_head is None else self.lm_head).weight

    def logits(self, hidden: Tensor, output_weight: Tensor | None = None) -> Tensor:
        """(..., W) -> (..., V) in float32.

        Args:
            output_weight: that of the model, from before
        """
        weight_VW = self.output_weight if output_weight is None else output_weight
        return F.linear(hidden.to(weight_VW.dtype), weight_VW).float()

    def set_gradient_checkpointing(self, enabled: bool, context_fn: ContextFn = noop_context_fn) -> None:
        super().set_gradient_checkpointing(enabled, context_fn)
        # transformers before 5.21 knows them by other names
        lm, name = self.lm, "activation" if hasattr(self.lm, "activation_checkpointing_enable") else "gradient"
        if enabled:
            getattr(lm, f"{name}_checkpointing_enable")({"use_reentrant": False, "context_fn": context_fn})
        else:
            getattr(lm, f"{name}_checkpointing_disable")()

    def prompts(self, batch: Targets) -> Tensor:
        """(N, P) tokens between the speech and the text."""
        after_P = torch.tensor(self.config.after, device=batch.tokens_NU.device)
        return after_P.expand(batch.tokens_NU.shape[0], -1)

    def stream_of(self, layer: str) -> str:
        part = layer.partition(".")[0]
        return part if part in ("projector", "lm") else "default"

    def stream_lengths(self, feature_lengths_N: Tensor, batch: Targets | None = None) -> dict[str, Tensor]:
        lengths = super().stream_lengths(feature_lengths_N)
        lengths["projector"] = self.projector.output_lengths(lengths["default"])
        if batch is not None:
            lengths["lm"] = lengths["projector"] + self._around + batch.token_lengths_N
        return lengths

    def too_long(self, feature_frames: int, num_tokens: int) -> str | None:
        if why := super().too_long(feature_frames, num_tokens):
            return why
        frames = int(self.projector.output_lengths(self.output_lengths(torch.tensor(feature_frames))))
        needed, room = frames + self._around + num_tokens, self.lm.config.max_position_embeddings
        if needed <= room:
            return None
        return f"its speech, prompt and text take {needed} positions, the language model has {room}"

    def max_tokens(self, lengths_N: Tensor) -> Tensor:
        """Longest hypothesis of each utterance from its frames after the projector, the end counted as one.

        Raises:
            UserError: the speech leaves no room for text
        """
        room_N = self.lm.config.max_position_embeddings - self._around - lengths_N
        if int(room_N.min()) < 1:
            raise UserError(
                f"an utterance of {int(lengths_N.max())} frames leaves no room for text in the "
                f"{self.lm.config.max_position_embeddings} positions of the language model: cut it into shorter ones"
            )
        return (lengths_N * self.config.tokens_per_frame).ceil().long().clamp(min=1).minimum(room_N)

    def log_probs(self, features_NTF: Tensor, feature_lengths_N: Tensor) -> tuple[Tensor, Tensor]:
        raise UserError("a speech_llm has no CTC output: search greedy or beam")

    @property
    def _around(self) -> int:
        """Positions of the prompt."""
        return len(self.config.before) + len(self.config.after)


def _build_lm(config: dict[str, Any]) -> nn.Module:
    """The language model without its output layer, in float32 and without dropout.

    Raises:
        UserError: `transformers` is missing or does not take this configuration
    """
    try:
        from huggingface_hub.errors import StrictDataclassError
        from transformers import AutoConfig, AutoModel
    except ImportError:
        raise UserError("a speech_llm needs transformers: pip install 'moe_asr[whisper]'") from None
    try:
        lm_config = AutoConfig.for_model(**{**config, "attention_dropout": 0.0, "use_cache": False})
        lm = AutoModel.from_config(lm_config, dtype=torch.float32, attn_implementation="sdpa", trust_remote_code=False)
    except (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"speech_llm: transformers cannot make this language model: {reason}") from None
    # What is no weight is in no file, so it must be there even where weights are still to come.
    with torch.device("cpu"):
        lm.rotary_emb = type(lm.rotary_emb)(lm_config)
    return lm

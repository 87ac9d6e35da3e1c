"""Whisper (Radford et al. 2022), with or without padding to 30 s.

Parameters carry the names of `transformers`, so that its checkpoints load as they are.

Shape letters: N utterances, T frames, F mel bins, D model width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_asr.errors import UserError
from moe_asr.models.dropout import Dropout
from moe_asr.models.encoder_decoder import EncoderDecoder
from moe_asr.models.speech_encoder import SpeechEncoder
from moe_asr.models.time_conv import TimeConv, padding_mask, real_mask
from moe_asr.models.transformer import FixedPositions, TransformerLayer
from moe_asr.models.transformer_decoder import DecoderConfig, TransformerDecoder

ATTENTION_TARGETS = {
    "encoder": (r"encoder\.layers\.\d+\.self_attn\.(q|k|v|out)_proj",),
    "decoder": (r"decoder\.layers\.\d+\.self_attn\.(q|k|v|out)_proj",),
    "cross": (r"decoder\.layers\.\d+\.encoder_attn\.(q|k|v|out)_proj",),
}
"""The projections of each kind of attention in a Whisper model."""


@dataclass(frozen=True)
class WhisperEncoderConfig:
    """Size of Whisper's encoder.

    Args:
        mels: mel bins of the features.
        width: model width D.
        layers: number of layers.
        heads: attention heads.
        ffn: hidden width of the feed-forward modules.
        max_frames: positions, each of 20 ms.
        dropout: on the output of every module.
    """

    mels: int = 80
    width: int = 384
    layers: int = 4
    heads: int = 6
    ffn: int = 1536
    max_frames: int = 1500
    dropout: float = 0.0


@dataclass(frozen=True)
class WhisperConfig:
    """Size and tokens of a Whisper model.

    Args:
        mels: mel bins of the features.
        width: model width D.
        encoder_layers: layers of the encoder.
        decoder_layers: layers of the decoder.
        heads: attention heads.
        ffn: hidden width of the feed-forward modules.
        vocab_size: number of tokens; 0 takes that of the token set.
        max_frames: positions of the encoder, each of 20 ms.
        max_tokens: positions of the decoder.
        prompt: tokens with which decoding starts.
        languages: token of each language by its code, where the model is multilingual; the second token of the prompt
            gives way to that of an utterance's language.
        language_weight: weight of the loss by which it learns to tell languages apart.
        end: token that ends a text.
        suppress: tokens that are never decoded.
        begin_suppress: tokens that never come first.
        tokens_per_frame: bound of the length of a hypothesis, per encoder frame of 20 ms.
        dropout: on the output of every module of the encoder.
        decoder_dropout: on those of the decoder.
        label_smoothing: share of the target spread over the vocabulary, in training.
        ctc_weight: weight of a CTC loss on the encoder, which Whisper itself does not have; 0 for none.
        replaced: what of a pre-trained model was replaced when it was taken over.
    """

    mels: int = 80
    width: int = 384
    encoder_layers: int = 4
    decoder_layers: int = 4
    heads: int = 6
    ffn: int = 1536
    vocab_size: int = 0
    max_frames: int = 1500
    max_tokens: int = 448
    prompt: tuple[int, ...] = (2,)
    languages: dict[str, int] = field(default_factory=dict)
    language_weight: float = 0.0
    end: int = 2
    suppress: tuple[int, ...] = (0,)
    begin_suppress: tuple[int, ...] = ()
    tokens_per_frame: float = 0.5
    dropout: float = 0.0
    decoder_dropout: float = 0.0
    label_smoothing: float = 0.0
    ctc_weight: float = 0.0
    replaced: tuple[str, ...] = ()

    def __post_init__(self):
        for name in ("dropout", "decoder_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise UserError(f"whisper: {name} must be in [0, 1), not {getattr(self, name)}")
        if not self.tokens_per_frame > 0:
            raise UserError(f"whisper: tokens_per_frame must be above 0, not {self.tokens_per_frame}")

    @property
    def encoder(self) -> WhisperEncoderConfig:
        """Size of the encoder alone."""
        return WhisperEncoderConfig(
            self.mels, self.width, self.encoder_layers, self.heads, self.ffn, self.max_frames, self.dropout
        )


def with_languages(config: WhisperConfig, languages: Mapping[str, int]) -> WhisperConfig:
    """A model with own tokens that is told the language second in its prompt; no text has these tokens."""
    prompt = (config.prompt[0], next(iter(languages.values())))
    suppress = tuple(dict.fromkeys((*config.suppress, *languages.values())))
    return replace(config, languages=dict(languages), prompt=prompt, suppress=suppress)


class Whisper(EncoderDecoder):
    """Encoder of two convolutions and Transformer layers, Transformer decoder; see `EncoderDecoder`."""

    default_targets = (
        r"(encoder|decoder)\.layers\.\d+\.(self|encoder)_attn\.(q|k|v|out)_proj",
        r"(encoder|decoder)\.layers\.\d+\.fc[12]",
    )
    attention_targets = ATTENTION_TARGETS

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__(
            config.prompt, config.end, config.suppress, config.begin_suppress,
            config.ctc_weight, config.label_smoothing, config.tokens_per_frame,
            languages=config.languages, language_weight=config.language_weight,
        )  # fmt: skip
        if config.vocab_size < 2:
            raise UserError(f"whisper: vocab_size {config.vocab_size} leaves no token beside the end")
        if not config.prompt:
            raise UserError("whisper: prompt is empty; decoding needs a token to start with")
        for name in ("prompt", "end", "suppress", "begin_suppress", "languages"):
            value = getattr(config, name)
            value = value.values() if isinstance(value, dict) else value
            for token in (value,) if isinstance(value, int) else value:
                if not 0 <= token < config.vocab_size:
                    raise UserError(f"whisper: {name} names token {token}, but there are 0 to {config.vocab_size - 1}")
        self.encoder = WhisperEncoder(config.encoder)
        self.decoder = TransformerDecoder(
            DecoderConfig(
                config.decoder_layers, config.heads, config.ffn, config.decoder_dropout, config.max_tokens, True
            ),
            config.width,
            config.vocab_size,
        )
        if config.ctc_weight:
            self.ctc_head = nn.Linear(config.width, config.vocab_size)


class WhisperEncoder(SpeechEncoder):
    """conv (kernel 3), GELU, conv (kernel 3, stride 2), GELU, + sinusoids, layers, norm.

    Convolutions see zeros beyond the end of an utterance and attention sees none of it, so that an utterance gives the
    same states alone and in any batch. Positions are cut to the longest utterance.
    """

    def __init__(self, config: WhisperEncoderConfig) -> None:
        super().__init__()
        self.width, self.max_frames = config.width, config.max_frames
        self.conv1 = TimeConv(config.mels, config.width, kernel=3)
        self.conv2 = TimeConv(config.width, config.width, kernel=3, stride=2)
        self.embed_positions = FixedPositions(config.max_frames, config.width)
        self.layers = nn.ModuleList(
            TransformerLayer(config.width, config.heads, config.ffn, config.dropout, cross=False)
            for _ in range(config.layers)
        )
        self.layer_norm = nn.LayerNorm(config.width)
        self.dropout = Dropout(config.dropout)

    def forward(self, features_NTF: Tensor, lengths_N: Tensor) -> tuple[Tensor, Tensor]:
        """features_NTF, frame counts -> (states_NTD, frame counts); states of padding frames are zero."""
        x_NTD = F.gelu(self.conv1(features_NTF, padding_mask(lengths_N, features_NTF.shape[1])))
        x_NTD = F.gelu(self.conv2(x_NTD, padding_mask(lengths_N, x_NTD.shape[1])))
        lengths_N = self.output_lengths(lengths_N)
        T = x_NTD.shape[1]
        if T > self.max_frames:
            raise UserError(
                f"an utterance of {T / 50:g} s is longer than the {self.max_frames / 50:g} s that this Whisper "
                "model can hear: cut it, or leave it out in data preparation"
            )
        x_NTD = self.dropout(x_NTD + self.embed_positions.weight[:T])
        real_NT = real_mask(lengths_N, T)
        mask_N11T = None if int(lengths_N.min()) == T else real_NT[:, None, None]
        for layer in self.layers:
            x_NTD = self.run_layer(layer, x_NTD, mask_N11T)
        return self.layer_norm(x_NTD).masked_fill(~real_NT[..., None], 0.0), lengths_N

    def output_lengths(self, lengths_N: Tensor) -> Tensor:
        """Feature frames -> encoder frames, ceil(length / 2)."""
        return self.conv2.output_lengths(lengths_N)

    def too_long(self, feature_frames: int) -> str | None:
        frames = int(self.output_lengths(torch.tensor(feature_frames)))
        if frames <= self.max_frames:
            return None
        return f"it lasts {frames / 50:g} s, this Whisper model hears {self.max_frames / 50:g} s"

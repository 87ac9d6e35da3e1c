"""Which speech encoder: one configuration for all kinds."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from moe_asr.errors import UserError
from moe_asr.models.conformer import ConformerConfig, ConformerEncoder
from moe_asr.models.pretrained_encoder import PretrainedEncoder, PretrainedEncoderConfig
from moe_asr.models.speech_encoder import SpeechEncoder
from moe_asr.models.whisper import WhisperEncoder, WhisperEncoderConfig

_ENCODERS = {"conformer": ConformerEncoder, "whisper": WhisperEncoder, "pretrained": PretrainedEncoder}


@dataclass(frozen=True)
class EncoderConfig:
    """Exactly one of these is set, and says what the encoder is.

    Args:
        conformer: that of a Conformer.
        whisper: that of Whisper.
        pretrained: HuBERT, wav2vec 2.0 and their like, from `transformers`.
    """

    conformer: ConformerConfig | None = None
    whisper: WhisperEncoderConfig | None = None
    pretrained: PretrainedEncoderConfig | None = None

    def __post_init__(self):
        kinds = [field.name for field in dataclasses.fields(self) if getattr(self, field.name) is not None]
        if len(kinds) != 1:
            found = " and ".join(kinds) or "none"
            raise UserError(f"encoder: set exactly one of {', '.join(_ENCODERS)}, not {found}")

    @property
    def kind(self) -> str:
        """Name of the one field that is set."""
        return next(kind for kind in _ENCODERS if getattr(self, kind) is not None)

    @property
    def mels(self) -> int:
        """Width of the features that it takes; 1 for one that takes samples."""
        return getattr(getattr(self, self.kind), "mels", 1)

    def without_dropout(self) -> EncoderConfig:
        """The same for an encoder that stays as it is."""
        part = getattr(self, self.kind)
        if not hasattr(part, "dropout"):
            return self
        return dataclasses.replace(self, **{self.kind: dataclasses.replace(part, dropout=0.0)})


def build_encoder(config: EncoderConfig) -> SpeechEncoder:
    """A freshly initialised encoder."""
    return _ENCODERS[config.kind](getattr(config, config.kind))

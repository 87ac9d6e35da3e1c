"""Which model: one configuration for all kinds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moe_asr.errors import UserError
from moe_asr.models.conformer_aed import ConformerAED, ConformerAEDConfig
from moe_asr.models.conformer_ctc import ConformerCTC, ConformerCTCConfig
from moe_asr.models.domain_classifier import DomainClassifier, DomainClassifierConfig
from moe_asr.models.interface import Model
from moe_asr.models.speech_llm import SpeechLLM, SpeechLLMConfig
from moe_asr.models.whisper import Whisper, WhisperConfig, with_languages

KINDS = {
    "conformer_ctc": ConformerCTC,
    "conformer_aed": ConformerAED,
    "whisper": Whisper,
    "speech_llm": SpeechLLM,
    "domain_classifier": DomainClassifier,
}


@dataclass(frozen=True)
class ModelConfig:
    """Exactly one of these is set, and says what the model is.

    Args:
        conformer_ctc: Conformer recogniser with CTC.
        conformer_aed: Conformer encoder and Transformer decoder with joint CTC.
        whisper: Whisper.
        speech_llm: speech encoder, projector and language model.
        domain_classifier: classifier of accents or other domains.
    """

    conformer_ctc: ConformerCTCConfig | None = None
    conformer_aed: ConformerAEDConfig | None = None
    whisper: WhisperConfig | None = None
    speech_llm: SpeechLLMConfig | None = None
    domain_classifier: DomainClassifierConfig | None = None


def model_kind(config: ModelConfig) -> str:
    """Name of the one field that is set.

    Raises:
        UserError: none is set, or more than one.
    """
    kinds = [field.name for field in dataclasses.fields(config) if getattr(config, field.name) is not None]
    if len(kinds) != 1:
        found = " and ".join(kinds) or "none"
        raise UserError(f"model: set exactly one of {', '.join(KINDS)}, not {found}")
    return kinds[0]


def build_model(config: ModelConfig) -> Model:
    """A freshly initialised model; `torch.manual_seed` decides its weights.

    Raises:
        UserError: see `model_kind` and the models' own configurations.
    """
    kind = model_kind(config)
    return KINDS[kind](getattr(config, kind))


def complete_config(
    config: ModelConfig,
    num_mels: int,
    vocab_size: int,
    domains: Sequence[str] = (),
    languages: Mapping[str, int] | None = None,
) -> ModelConfig:
    """The configuration with what the data decide filled in: size of the vocabulary, names of domains and languages.

    Args:
        config: `vocab_size: 0` and `domains: []` are filled in, other values are compared with the data.
        num_mels: mel bins of the features.
        vocab_size: number of tokens in the token set; a classifier needs none.
        domains: names of the domains, sorted; a recogniser needs none.
        languages: tokens of languages in the token set.

    Raises:
        UserError: the configuration contradicts the data.
    """
    kind = model_kind(config)
    part = getattr(config, kind)
    encoder = part if kind == "whisper" else part.encoder
    if encoder is not None and encoder.mels != num_mels:
        raise UserError(f"{kind}: mels is {encoder.mels}, but the features have {num_mels} mel bins")
    if kind == "domain_classifier":
        part = dataclasses.replace(part, domains=part.domains or tuple(domains))
        if domains and tuple(domains) != part.domains:
            raise UserError(
                f"{kind}: domains are {', '.join(part.domains)}, but those of the data {', '.join(domains)}"
            )
    elif kind == "speech_llm":
        if part.vocab_size != vocab_size:
            raise UserError(f"{kind}: the LM has {part.vocab_size} tokens, but the token set {vocab_size}")
    else:
        part = dataclasses.replace(part, vocab_size=part.vocab_size or vocab_size)
        if part.vocab_size != vocab_size:
            raise UserError(f"{kind}: vocab_size is {part.vocab_size}, but the token set has {vocab_size} tokens")
        if languages and kind == "whisper":
            part = with_languages(part, languages)
        elif languages and kind == "conformer_aed":
            part = dataclasses.replace(part, languages=dict(languages))
    return dataclasses.replace(config, **{kind: part})

"""Takes over a Whisper checkpoint of transformers as a model folder."""

from dataclasses import dataclass
from typing import Optional

from moe_asr.config import run_command


@dataclass(frozen=True)
class ImportConfig:
    """Makes a model folder from a Whisper checkpoint of transformers (safetensors), strictly: every weight, or nothing.

    Args:
        source: Folder of the checkpoint, or its name on the Hugging Face hub, such as openai/whisper-tiny.en.
        out_dir: Model folder to write.
        tokens: Folder of a token set that replaces the checkpoint's own; the token embedding is made new for it.
        language: That a multilingual checkpoint listens for: en, zh, ...; left out, it keeps all its languages, and for
            each utterance is told, or tells, which one it hears.
        task: transcribe or translate, for a multilingual checkpoint; by default transcribe.
        pad_to_30s: Pads all audio with silence to 30 s, as Whisper did in training; stored with the model.
        tail_padding_seconds: Silence put behind every utterance instead, in seconds; stored with the model.
        normaliser: Name of the text normaliser by which its transcripts are compared.
        seed: Of the new embedding.
        decoder_dropout: Where the model is trained on, instead of the checkpoint's.
        label_smoothing: Share of the target spread over all tokens, where the model is trained on.
        language_weight: Weight of the loss by which it learns to tell languages apart, where it is trained on and has
            several.
        ctc_weight: Weight of the loss of a CTC output, new, on the encoder, where the model is trained on with tokens
            of your own; below 1.
    """

    source: str
    out_dir: str
    tokens: Optional[str] = None
    language: Optional[str] = None
    task: Optional[str] = None
    pad_to_30s: bool = False
    tail_padding_seconds: float = 0.0
    normaliser: str = "english"
    seed: int = 0
    decoder_dropout: Optional[float] = None
    label_smoothing: float = 0.0
    language_weight: float = 0.0
    ctc_weight: float = 0.0


def import_checkpoint(config: ImportConfig) -> None:
    from moe_asr.models.whisper_import import Choices, import_whisper

    choices = Choices(
        config.tokens, config.language, config.task, config.pad_to_30s, config.tail_padding_seconds, config.seed,
        config.decoder_dropout, config.label_smoothing, config.language_weight, config.ctc_weight,
    )  # fmt: skip
    print("\n".join(import_whisper(config.source, config.out_dir, config.normaliser, choices)))


if __name__ == "__main__":
    run_command(ImportConfig, import_checkpoint)

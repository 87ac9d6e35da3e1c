"""Writes down what is said: `python -m moe_asr.bin.transcribe --model exp/base/final recordings/ talk.mp3`."""

from moe_asr.config import run_command
from moe_asr.decoding.transcribe_config import TranscribeConfig


def transcribe(config: TranscribeConfig) -> None:
    from moe_asr.decoding.transcribe import transcribe

    transcribe(config)


if __name__ == "__main__":
    run_command(TranscribeConfig, transcribe)

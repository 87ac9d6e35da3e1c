"""Puts a speech encoder and a language model of transformers together as a model folder."""

from moe_asr.config import run_command
from moe_asr.models.speech_llm_import import ImportConfig, import_speech_llm

if __name__ == "__main__":
    run_command(ImportConfig, lambda config: print("\n".join(import_speech_llm(config))))

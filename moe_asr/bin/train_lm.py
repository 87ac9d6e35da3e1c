"""Trains a small language model on text: `python -m moe_asr.bin.train_lm --config conf/lm.yaml --exp_dir exp/lm`."""

from moe_asr.config import run_command
from moe_asr.training.language_model import LanguageModelRunConfig, train_language_model

if __name__ == "__main__":
    run_command(LanguageModelRunConfig, train_language_model)

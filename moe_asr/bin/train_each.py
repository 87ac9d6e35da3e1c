"""Trains once for each name: `python -m moe_asr.bin.train_each --names speakers.txt --exp_dir 'exp/{name}' ...`."""

from moe_asr.config import run_command
from moe_asr.training.each import EachConfig, train_each

if __name__ == "__main__":
    run_command(EachConfig, train_each)

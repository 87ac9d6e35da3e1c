"""Trains a model or the experts on one: `python -m moe_asr.bin.train --config conf/x.yaml --exp_dir exp/x`."""

from moe_asr.config import run_command
from moe_asr.training.run import RunConfig, train

if __name__ == "__main__":
    run_command(RunConfig, train)

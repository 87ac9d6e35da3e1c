"""Puts a model into 4 bits: `python -m moe_asr.bin.quantise --model exp/base/final --out_dir exp/base_nf4`."""

from moe_asr.config import run_command
from moe_asr.methods.quantise import QuantiseConfig, quantise_folder

if __name__ == "__main__":
    run_command(QuantiseConfig, quantise_folder)

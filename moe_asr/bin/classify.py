"""Measures a domain classifier: `python -m moe_asr.bin.classify --model exp/accent/final --manifest X --out_dir Y`."""

from moe_asr.config import run_command
from moe_asr.decoding.classify import ClassifyConfig, classify

if __name__ == "__main__":
    run_command(ClassifyConfig, classify)

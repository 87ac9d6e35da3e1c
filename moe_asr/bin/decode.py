"""Decodes a manifest: `python -m moe_asr.bin.decode --model exp/base/final --manifest X.jsonl.gz --out_dir exp/x`."""

from moe_asr.config import run_command
from moe_asr.decoding.run import DecodeConfig, decode

if __name__ == "__main__":
    run_command(DecodeConfig, decode)

"""Leaves out experts of an adaptation: `python -m moe_asr.bin.prune --adaptation exp/saml/final --drop 5 ...`."""

from moe_asr.config import run_command
from moe_asr.methods.prune import PruneConfig, prune

if __name__ == "__main__":
    run_command(PruneConfig, prune)

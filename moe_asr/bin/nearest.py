"""Names the adaptation that suits other speech best: `python -m moe_asr.bin.nearest --model M --adaptations ...`."""

from moe_asr.config import run_command
from moe_asr.training.nearest import NearestConfig, nearest

if __name__ == "__main__":
    run_command(NearestConfig, nearest)

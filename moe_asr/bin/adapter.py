"""What one does with trained experts: `python -m moe_asr.bin.adapter fuse a/final b/final --out_dir sum`."""

from moe_asr.config import run_commands
from moe_asr.methods.adapter_config import AverageConfig, FuseConfig


def fuse(config: FuseConfig) -> None:
    from moe_asr.methods.fuse import fuse_adaptations

    fuse_adaptations(config)


def average(config: AverageConfig) -> None:
    from moe_asr.methods.fuse import average_adaptations

    average_adaptations(config)


if __name__ == "__main__":
    run_commands({"fuse": (FuseConfig, fuse), "average": (AverageConfig, average)})

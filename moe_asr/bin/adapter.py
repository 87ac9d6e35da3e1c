"""What one does with trained experts: `python -m moe_asr.bin.adapter fuse a/final b/final --out_dir sum`."""

from importlib import import_module

from moe_asr.config import run_commands
from moe_asr.methods.adapter_config import (
    AverageConfig,
    ExportConfig,
    FuseConfig,
    ImportConfig,
    MergeConfig,
    ShowConfig,
)


def later(module: str, name: str):
    """A function of a module that imports torch, which the help of this command does without."""
    return lambda config: getattr(import_module(f"moe_asr.methods.{module}"), name)(config)


COMMANDS = {
    "show": (ShowConfig, later("adapter_tools", "show")),
    "merge": (MergeConfig, later("adapter_tools", "merge")),
    "fuse": (FuseConfig, later("fuse", "fuse_adaptations")),
    "average": (AverageConfig, later("fuse", "average_adaptations")),
    "export": (ExportConfig, later("adapter_tools", "export")),
    "import": (ImportConfig, later("adapter_tools", "import_lora")),
}

if __name__ == "__main__":
    run_commands(COMMANDS)

"""moe_asr: mixtures of LoRA experts for speech recognition."""

__version__ = "0.1.0"

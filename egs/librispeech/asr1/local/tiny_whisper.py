"""Makes a Whisper checkpoint for the miniature, in the layout of `transformers`: two small layers, random weights."""

from __future__ import annotations

from dataclasses import dataclass

from moe_asr.config import run_command
from moe_asr.files import atomic_folder


@dataclass(frozen=True)
class TinyWhisperConfig:
    """Writes a Whisper checkpoint with random weights.

    Args:
        out_dir: Folder for config.json, generation_config.json and model.safetensors.
        width: Model width.
        seed: Of the weights.
    """

    out_dir: str
    width: int = 32
    seed: int = 0


def make_checkpoint(config: TinyWhisperConfig) -> None:
    import torch
    from transformers import WhisperConfig, WhisperForConditionalGeneration
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.manual_seed(config.seed)
    size = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    size |= {"d_model": config.width, "encoder_ffn_dim": 2 * config.width, "decoder_ffn_dim": 2 * config.width}
    special = {"pad_token_id": 2, "bos_token_id": 2, "eos_token_id": 2, "decoder_start_token_id": 2}
    model = WhisperForConditionalGeneration(WhisperConfig(vocab_size=64, **size, **special))
    with atomic_folder(config.out_dir) as folder:
        model.save_pretrained(folder)
    print(f"{config.out_dir}: {sum(p.numel() for p in model.parameters()):,} random weights")


if __name__ == "__main__":
    run_command(TinyWhisperConfig, make_checkpoint)

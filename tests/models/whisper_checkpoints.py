"""Tiny Whisper checkpoints as transformers saves them, with random weights."""

import json
from pathlib import Path

import tokenizers
import torch
import transformers

SPECIAL = ["endoftext", "startoftranscript", "en", "zh", "translate", "transcribe", "notimestamps"]
TEXTS = ["turn on the light in the kitchen", "turn off the radio", "it's the other one"] * 3


def save_tokenizer(folder):
    """Byte-level BPE of 275 tokens (256 bytes, 19 merges), and the special ones from 275 on; returns id by name."""
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(TEXTS, vocab_size=275, show_progress=False)
    tokenizer.add_special_tokens([f"<|{name}|>" for name in SPECIAL])
    tokenizer.add_tokens(["<|0.00|>"])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return {name: tokenizer.token_to_id(f"<|{name}|>") for name in SPECIAL}


def save_checkpoint(folder, multilingual=False, positions=100, kept_tokens=None, seed=0, **saving):
    """Saves model, tokenizer and generation settings, and returns the model.

    Args:
        positions: of the encoder; 1500 for the 30 s of published ones
        kept_tokens: of this many tokens, the end among them, every text is made; by default of all
    """
    ids = save_tokenizer(Path(folder))
    torch.manual_seed(seed)
    config = transformers.WhisperConfig(
        vocab_size=ids["notimestamps"] + 4,
        num_mel_bins=16,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_source_positions=positions,
        max_target_positions=60,
        init_std=0.2,
        decoder_start_token_id=ids["startoftranscript"],
        **dict.fromkeys(("eos_token_id", "pad_token_id", "bos_token_id"), ids["endoftext"]),
    )
    model = transformers.WhisperForConditionalGeneration(config).eval()
    decoder = model.model.decoder
    with torch.no_grad():  # so that texts are no mere repetitions, and end (transformers sets that embedding to zero)
        decoder.embed_positions.weight.normal_()
        decoder.embed_tokens.weight[ids["endoftext"]].normal_(std=0.2)
    allowed = {ids["endoftext"], *range(20, 19 + kept_tokens)} if kept_tokens else set(range(5, config.vocab_size))
    languages = {
        "lang_to_id": {"<|en|>": ids["en"], "<|zh|>": ids["zh"]},
        "task_to_id": {name: ids[name] for name in ("translate", "transcribe")},
    }
    model.generation_config = transformers.GenerationConfig(
        decoder_start_token_id=ids["startoftranscript"],
        eos_token_id=ids["endoftext"],
        pad_token_id=ids["endoftext"],
        no_timestamps_token_id=ids["notimestamps"],
        begin_suppress_tokens=[21, ids["endoftext"]],
        suppress_tokens=sorted(set(range(config.vocab_size)) - allowed),
        is_multilingual=multilingual,
        **(languages if multilingual else {}),
    )
    model.save_pretrained(folder, **saving)
    return model


def edit(path, **changes):
    """Changes entries of a JSON file; those set to None go."""
    content = json.loads(path.read_text())
    content |= changes
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))

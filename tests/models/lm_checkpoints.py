"""Tiny language models as transformers saves them, with random weights."""

from pathlib import Path

import tokenizers
import torch
import transformers

TEXTS = ["turn on the light in the kitchen", "turn off the radio", "打开 厨房 的 灯"] * 3
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MODELS = {
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
}
VOCAB = 288
"""Size of the embedding; 280 of them are bytes and merges, 280 to 282 the special ones, the rest fills it up."""


def save_tokenizer(folder):
    """Byte-level BPE as that of Qwen."""
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(TEXTS, vocab_size=280, show_progress=False)
    tokenizer.add_special_tokens(SPECIAL)
    Path(folder).mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(Path(folder) / "tokenizer.json"))


def make_lm(kind="qwen2", tied=True, positions=64, vocab=VOCAB, seed=0):
    """A language model with output layer, in float32."""
    torch.manual_seed(seed)
    config_type, model_type = MODELS[kind]
    config = config_type(
        vocab_size=vocab,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        tie_word_embeddings=tied,
        initializer_range=0.3,
        bos_token_id=None,
        pad_token_id=None,
        eos_token_id=282,
        **({"head_dim": 8} if kind == "qwen3" else {}),
    )
    return model_type(config).eval()


def save_lm(folder, kind="qwen2", tied=True, dtype=torch.float32, **saving):
    """Saves model and tokenizer, and returns the model."""
    lm = make_lm(kind, tied).to(dtype)
    lm.save_pretrained(folder, **saving)
    save_tokenizer(folder)
    return lm

"""A Whisper as a folder that `WhisperForConditionalGeneration.from_pretrained` of `transformers` loads."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file

from moe_asr.data.whisper_tokens import WhisperTokens
from moe_asr.errors import UserError
from moe_asr.files import atomic_folder
from moe_asr.models.encoder_decoder import LANGUAGE
from moe_asr.models.folder import LoadedModel
from moe_asr.models.whisper import Whisper, WhisperConfig

PREFIX = "model."
"""What stands before our names of layers and weights in transformers."""


def export_whisper(folder: str | Path, loaded: LoadedModel) -> list[str]:
    """Writes config.json, model.safetensors, generation_config.json, preprocessor_config.json and, for the tokens of a
    Whisper checkpoint, the tokenizer; returns lines about what transformers will not do by itself.

    Raises:
        UserError: it is no Whisper, or it is in 4 bits
    """
    model, config = loaded.model, loaded.config
    if not isinstance(model, Whisper):
        raise UserError("only a Whisper can be written in the format of transformers")
    if config.quantisation is not None:
        raise UserError("a model in 4 bits has no such format in transformers: take the one that it was made from")
    import transformers  # slow, and nobody else needs it

    whisper = config.model.whisper
    state = {f"{PREFIX}{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
    notes = []
    for name in [name for name in state if name.startswith(f"{PREFIX}ctc_head.")]:
        del state[name]
    if whisper.ctc_weight:
        notes.append("the CTC output is left out: transformers has none")
    own = not isinstance(loaded.tokens, WhisperTokens)
    with atomic_folder(folder) as new:
        theirs = transformers.WhisperConfig(**_sizes(whisper), architectures=["WhisperForConditionalGeneration"])
        theirs.save_pretrained(new)
        save_file(state, new / "model.safetensors", metadata={"format": "pt"})
        generation = _generation(whisper, loaded)
        (new / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
        transformers.WhisperFeatureExtractor(feature_size=whisper.mels).save_pretrained(new)
        if own:
            prompt = ", ".join(map(str, whisper.prompt))
            notes.append(
                f"its tokens are no Whisper's, so there is no tokenizer: generate with decoder_input_ids=[[{prompt}]]"
                " and read the tokens with moe_asr"
            )
        else:
            loaded.tokens.save(new)
            tokenizer = transformers.WhisperTokenizerFast(tokenizer_file=str(new / "tokenizer.json"))
            tokenizer.save_pretrained(new)
            loaded.tokens.save(new)  # as it was, not as another library writes it
    if config.features.pad_seconds != whisper.max_frames / 50:
        notes.append("it was used without padding to 30 s here, transformers pads by itself: texts may differ")
    return notes


def _sizes(config: WhisperConfig) -> dict:
    """Our configuration in the names of theirs; see `whisper_import.whisper_config`."""
    return {
        "num_mel_bins": config.mels,
        "d_model": config.width,
        "encoder_layers": config.encoder_layers,
        "decoder_layers": config.decoder_layers,
        **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), config.heads),
        **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), config.ffn),
        "vocab_size": config.vocab_size,
        "max_source_positions": config.max_frames,
        "max_target_positions": config.max_tokens,
        "dropout": config.decoder_dropout,
        "decoder_start_token_id": config.prompt[0],
        **dict.fromkeys(("eos_token_id", "pad_token_id", "bos_token_id"), config.end),
    }


def _generation(config: WhisperConfig, loaded: LoadedModel) -> dict:
    tokens = loaded.tokens
    found = {
        "decoder_start_token_id": config.prompt[0],
        **dict.fromkeys(("eos_token_id", "pad_token_id", "bos_token_id"), config.end),
        "suppress_tokens": list(config.suppress),
        "begin_suppress_tokens": list(config.begin_suppress),
        "max_length": config.max_tokens,
        "is_multilingual": False,
    }
    if not isinstance(tokens, WhisperTokens):
        return found
    found["no_timestamps_token_id"] = tokens.find("<|notimestamps|>")
    if len(config.prompt) > 2:  # <|startoftranscript|> <|language|> <|task|> <|notimestamps|>
        named = config.languages or {tokens.piece(config.prompt[LANGUAGE])[2:-2]: config.prompt[LANGUAGE]}
        tasks = {name: tokens.find(f"<|{name}|>") for name in ("transcribe", "translate")}
        found |= {
            "is_multilingual": True,
            "lang_to_id": {f"<|{code}|>": index for code, index in named.items()},
            "task_to_id": {name: index for name, index in tasks.items() if index is not None},
            "task": tokens.piece(config.prompt[LANGUAGE + 1])[2:-2],
        }
        if not config.languages:
            found["language"] = tokens.piece(config.prompt[LANGUAGE])
    return found

"""Reads a causal language model of `transformers`: from a folder, or from the Hugging Face hub."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from moe_asr.data.json_tokens import TOKENIZER
from moe_asr.data.llm_tokens import LLMTokens
from moe_asr.errors import UserError
from moe_asr.models.checkpoint_files import CONFIG, checkpoint_folder, read_json, read_weights
from moe_asr.models.speech_llm import LM_TYPES

_GENERATION = "generation_config.json"
_OTHER_TOKENIZERS = ("tokenizer.model", "vocab.json")
_SETTINGS = (_GENERATION, TOKENIZER, *_OTHER_TOKENIZERS, "merges.txt", "tokenizer_config.json", "added_tokens.json",
             "special_tokens_map.json")  # fmt: skip
_OF_FILE = ("_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version")
_OUTPUT, _EMBEDDING = "lm_head.weight", "embed_tokens.weight"


@dataclass(frozen=True)
class LMCheckpoint:
    """A causal language model.

    Args:
        source: as the user named it
        config: what `config.json` says, without what is about the file
        end: token that ends a text; None if the checkpoint names none
        tokens: its token set, of the size of its embedding
        state: its weights as they are stored, named as in the model of `transformers` without output layer
        output: the output layer's weight; None where the checkpoint has none
    """

    source: str
    config: dict
    end: int | None
    tokens: LLMTokens
    state: dict[str, Tensor]
    output: Tensor | None


def read_lm(source: str) -> LMCheckpoint:
    """Reads a language model.

    Args:
        source: folder, or name on the Hugging Face hub; what is not in the hub's cache is fetched

    Raises:
        UserError: there is no such checkpoint, it is damaged, quantised, of another kind, without a tokenizer, or has
            pickled weights only
    """
    folder = checkpoint_folder(source, _SETTINGS)
    config = read_json(folder / CONFIG, source)
    if config.get("model_type") not in LM_TYPES:
        raise UserError(
            f"{source} is no language model that can be taken over: its model_type is {config.get('model_type')}, "
            f"known are {', '.join(LM_TYPES)}"
        )
    if "quantization_config" in config:
        raise UserError(f"{source} is quantised: take the checkpoint that it was made from, and see bin/quantise")
    if not isinstance(config.get("vocab_size"), int):
        raise UserError(f"{source}: config.json lacks vocab_size; fetch it again")
    generation = read_json(folder / _GENERATION, source) if (folder / _GENERATION).is_file() else {}
    end = generation.get("eos_token_id", config.get("eos_token_id"))
    if isinstance(end, list):
        end = end[0] if end else None
    tokens = _read_tokens(folder, source, config["vocab_size"])
    state = read_weights(source, folder)
    for name, tensor in state.items():
        if tensor.itemsize < 2:
            raise UserError(f"{source}: {name} is {tensor.dtype}; quantised checkpoints are not taken over")
    # old checkpoints store the angles of rotary positions too, which follow from the configuration
    names = [name for name in state if not name.endswith("rotary_emb.inv_freq")]
    state = {name.removeprefix("model."): state[name] for name in names}
    output = state.pop(_OUTPUT, None)
    config = {name: value for name, value in config.items() if name not in _OF_FILE}
    return LMCheckpoint(source, config, end, tokens, state, output)


def _read_tokens(folder: Path, source: str, size: int) -> LLMTokens:
    name = f"{source}: its tokenizer"
    if (folder / TOKENIZER).is_file():
        return LLMTokens(folder, size, name)
    if not any((folder / name).is_file() for name in _OTHER_TOKENIZERS):
        raise UserError(
            f"{source} has no tokenizer ({TOKENIZER}, tokenizer.model, or vocab.json and merges.txt): fetch it again, "
            "or copy that of the same model into it"
        )
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as new:
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
            tokenizer.backend_tokenizer.save(f"{new}/{TOKENIZER}")
        except Exception as error:  # of several libraries, which do not say what they raise
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"{source} has no {TOKENIZER}, and its other tokenizer cannot be read: {reason}") from error
        return LLMTokens(new, size, name)

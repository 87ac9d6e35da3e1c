"""Puts a speech encoder and a language model together, with a new projector between them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Optional

import torch
from torch import Tensor

from moe_asr.data.llm_tokens import LLMTokens
from moe_asr.data.prompts import split_prompt
from moe_asr.errors import UserError
from moe_asr.models.build import ModelConfig
from moe_asr.models.encoder_import import ReadEncoder, read_encoder
from moe_asr.models.folder import FolderConfig, check_state, save_model
from moe_asr.models.lm_checkpoint import LMCheckpoint, read_lm
from moe_asr.models.projector import Projector, ProjectorConfig
from moe_asr.models.speech_llm import SpeechLLM, SpeechLLMConfig

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class ImportConfig:
    """Makes a model folder from a speech encoder and a causal language model of transformers (safetensors), strictly:
    every weight, or nothing. The projector between them is new: train it with `train --init`.

    Args:
        encoder: Where the encoder comes from: a model folder, or the folder or hub name of a checkpoint of Whisper,
            wav2vec 2.0, HuBERT or data2vec audio.
        lm: Folder or hub name of a language model: Qwen 2, 2.5 or 3, or Llama, such as Qwen/Qwen2.5-1.5B-Instruct.
        prompt: What the language model reads before it writes, with <speech> where the speech goes and something
            behind that; special tokens are written as they are, as in <|im_start|>user.
        out_dir: Model folder to write.
        end: Token that ends a text, such as <|im_end|>; by default the one that the language model names.
        layer: Layer of a wav2vec 2.0, HuBERT or data2vec encoder whose output to take; 0 for the last.
        projector: Size of the projector.
        lm_dtype: Number format of the language model: as it is stored, bf16 or fp32.
        tokens_per_frame: Bound of the length of a hypothesis, per frame after the projector.
        normaliser: Name of the text normaliser by which its transcripts are compared.
        seed: Of the projector.
    """

    encoder: str
    lm: str
    prompt: str
    out_dir: str
    end: Optional[str] = None
    layer: int = 0
    projector: ProjectorConfig = field(default_factory=ProjectorConfig)
    lm_dtype: Literal["keep", "bf16", "fp32"] = "keep"
    tokens_per_frame: float = 1.0
    normaliser: str = "none"
    seed: int = 0


def import_speech_llm(config: ImportConfig) -> list[str]:
    """Writes the model folder, and returns lines that say what was taken from where.

    Raises:
        UserError: see `read_encoder` and `read_lm`; weights are missing, unexpected or misshapen; the prompt or the end
            do not suit the language model
    """
    before, after = split_prompt(config.prompt)
    lm = read_lm(config.lm)
    before_ids, after_ids = lm.tokens.encode_prompt(before), lm.tokens.encode_prompt(after)
    end = _end(lm, config.end)
    encoder = read_encoder(config.encoder, config.layer)
    model_config = SpeechLLMConfig(
        encoder=encoder.config,
        lm=lm.config,
        projector=config.projector,
        prompt=config.prompt,
        before=tuple(before_ids),
        after=tuple(after_ids),
        end=end,
        suppress=tuple(token for token in lm.tokens.special if token != end),
        tokens_per_frame=config.tokens_per_frame,
    )
    with torch.device("meta"):
        model = SpeechLLM(model_config)
    model.projector = _new_projector(config, model, lm.state["embed_tokens.weight"])
    state = model.projector.state_dict(prefix="projector.")
    state |= _checked(encoder.state, model.encoder, "encoder", config.encoder)
    state |= _lm_state(lm, model, _DTYPES.get(config.lm_dtype))
    model.load_state_dict(state, assign=True)
    folder = FolderConfig(ModelConfig(speech_llm=model_config), encoder.features, config.normaliser, untrained=True)
    save_model(config.out_dir, model, folder, lm.tokens)
    return _report(config, model, encoder, lm)


def _end(lm: LMCheckpoint, piece: str | None) -> int:
    """The token that ends a text."""
    if piece is not None:
        index = lm.tokens.find(piece)
        if index is None:
            raise UserError(f"{lm.source} has no token {piece} to end a text: leave out --end, or see its tokenizer")
        return index
    index = lm.tokens.find("<|im_end|>") if lm.end is None else lm.end
    if index is None:
        raise UserError(f"{lm.source} names no token that ends a text (eos_token_id): give --end, such as </s>")
    return index


def _new_projector(config: ImportConfig, model: SpeechLLM, embedding_VW: Tensor) -> Projector:
    """A projector whose weights depend on its size and the seed, and whose output is as large as embedded tokens.

    In the residual stream of a language model something larger drowns all that its layers add.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        projector = Projector(config.projector, model.encoder.width, model.lm.config.hidden_size)
    with torch.no_grad():
        projector.norm.weight.fill_(embedding_VW.float().square().mean().sqrt())
    return projector


def _checked(state: dict[str, Tensor], part: torch.nn.Module, name: str, source: str) -> dict[str, Tensor]:
    """The weights of one part of the model under their names in the whole, if they are exactly those that it needs."""
    check_state(state, part, source)
    return {f"{name}.{key}": tensor for key, tensor in state.items()}


def _lm_state(lm: LMCheckpoint, model: SpeechLLM, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The weights of the language model and of its output layer, unless that is the embedding."""
    state, output = _checked(lm.state, model.lm, "lm", lm.source), lm.output
    if model.lm_head is not None:
        state |= _checked({} if output is None else {"weight": output}, model.lm_head, "lm_head", lm.source)
    elif output is not None and not torch.equal(output, lm.state["embed_tokens.weight"]):
        raise UserError(
            f"{lm.source}: lm_head.weight differs from model.embed_tokens.weight, although its config.json says that "
            "they are the same (tie_word_embeddings): set that to false in a copy of it"
        )
    return {name: tensor.to(dtype or tensor.dtype) for name, tensor in state.items()}


def _report(config: ImportConfig, model: SpeechLLM, encoder: ReadEncoder, lm: LMCheckpoint) -> list[str]:
    tokens: LLMTokens = lm.tokens
    output = "output tied to the embedding" if model.lm_head is None else "with its output layer"
    dtype = str(model.lm.embed_tokens.weight.dtype).removeprefix("torch.")
    lm_size = _size(model.lm) + (0 if model.lm_head is None else _size(model.lm_head))
    left_out = f", {encoder.left_out} others of it left out" if encoder.left_out else ""
    before, after = len(model.config.before), len(model.config.after)
    lines = [
        f"{config.out_dir}: a model whose projector needs training",
        f"encoder: {_size(model.encoder):,} parameters of {config.encoder} ({len(encoder.state)} weights{left_out})",
        f"language model: {lm_size:,} parameters of {config.lm} ({lm.config['model_type']}, {dtype}, {output})",
        f"projector: {_size(model.projector):,} parameters, new (seed {config.seed})",
        f"prompt: {before} tokens, speech, {after} tokens; text ends with {tokens.piece(model.end)}",
    ]
    if tokens.opening and not config.prompt.startswith(tokens.opening):
        lines.append(f"note: {config.lm} was trained on texts that begin with {tokens.opening}, this prompt does not")
    return lines


def _size(part: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters())

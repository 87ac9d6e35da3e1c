"""Takes over a Whisper checkpoint of `transformers` as a model folder: every weight of it, or nothing."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Optional

import torch

from moe_asr.data.features import FeatureConfig
from moe_asr.data.json_tokens import TOKENIZER
from moe_asr.data.tokens import Tokens, TokenSet, load_tokens
from moe_asr.data.whisper_tokens import WhisperTokens
from moe_asr.errors import UserError
from moe_asr.models.build import ModelConfig
from moe_asr.models.folder import FolderConfig, check_state, save_model
from moe_asr.models.whisper import Whisper, WhisperConfig, with_languages
from moe_asr.models.whisper_checkpoint import EMBEDDING, Checkpoint, read_checkpoint

CTC_OUTPUT = ("ctc_head.weight", "ctc_head.bias")
_LANGUAGE = re.compile(r"<\|([a-z]{2,3})\|>")
_FRAMES_PER_SECOND = 50  # of the encoder


@dataclass(frozen=True)
class Choices:
    """What the user decides about a Whisper checkpoint.

    Args:
        tokens: folder of a token set that replaces the checkpoint's own
        language: that a multilingual checkpoint listens for, as in its tokens: en, zh, ...; None takes them all, and
            each utterance names its own
        task: transcribe or translate, for a multilingual checkpoint
        pad_to_30s: pads all audio with silence to 30 s, as in Whisper's training
        tail_padding_seconds: silence put behind every utterance instead
        seed: of new weights
        decoder_dropout: where the model is trained on, instead of the checkpoint's
        label_smoothing: where the model is trained on
        language_weight: where the model is trained on, see `WhisperConfig`
        ctc_weight: where the model is trained on, of the loss of a new CTC output on the encoder; with own tokens alone
    """

    tokens: Optional[str] = None
    language: Optional[str] = None
    task: Optional[str] = None
    pad_to_30s: bool = False
    tail_padding_seconds: float = 0.0
    seed: int = 0
    decoder_dropout: Optional[float] = None
    label_smoothing: float = 0.0
    language_weight: float = 0.0
    ctc_weight: float = 0.0


def import_whisper(source: str, out_dir: str | Path, normaliser: str, choices: Choices = Choices()) -> list[str]:
    """Writes the model folder, and returns lines that say what was taken over and what was replaced.

    Raises:
        UserError: see `read_checkpoint`; weights are missing, unexpected or misshapen; choices do not suit it
    """
    checkpoint = read_checkpoint(source)
    config, replaced = whisper_config(checkpoint), ()
    if choices.tokens is None:
        if choices.ctc_weight:
            raise UserError("a CTC output is learned for tokens of your own: give --tokens, or leave out --ctc_weight")
        tokens = _own_tokens(checkpoint, config.vocab_size)
        config = _with_prompt(config, checkpoint, tokens, choices)
    else:
        tokens, replaced = _replace_embedding(checkpoint, config, choices)
        config = replace(config, vocab_size=tokens.size, replaced=replaced, ctc_weight=choices.ctc_weight)
        if tokens.languages:
            config = with_languages(config, tokens.languages)
    if choices.decoder_dropout is not None:
        config = replace(config, decoder_dropout=choices.decoder_dropout)
    config = replace(config, label_smoothing=choices.label_smoothing, language_weight=choices.language_weight)
    pad = config.max_frames / _FRAMES_PER_SECOND if choices.pad_to_30s else 0.0
    features = FeatureConfig.whisper(config.mels, choices.tail_padding_seconds, pad)
    with torch.device("meta"):
        model = Whisper(config)
    check_state(checkpoint.state, model, source)
    model.load_state_dict(checkpoint.state, assign=True)
    save_model(out_dir, model, FolderConfig(ModelConfig(whisper=config), features, normaliser), tokens)
    parameters = sum(tensor.numel() for tensor in checkpoint.state.values())
    new = sum(name in (EMBEDDING, *CTC_OUTPUT) for name in checkpoint.state) if replaced else 0
    return [
        f"{out_dir}: {len(checkpoint.state) - new} of {len(checkpoint.state)} weights are those of {source}"
        f" ({parameters:,} parameters in all)",
        *(f"replaced: {what}" for what in replaced[:1]),
        *(f"added: {what}" for what in replaced[1:]),
    ]


def whisper_config(checkpoint: Checkpoint) -> WhisperConfig:
    """The size of the model, with the tokens still open.

    Raises:
        UserError: settings are missing, or others than those of Whisper
    """
    found = checkpoint.config
    try:
        sizes = {
            "mels": found["num_mel_bins"],
            "width": found["d_model"],
            "encoder_layers": found["encoder_layers"],
            "decoder_layers": found["decoder_layers"],
            "heads": found["encoder_attention_heads"],
            "ffn": found["encoder_ffn_dim"],
            "vocab_size": found["vocab_size"],
            "max_frames": found["max_source_positions"],
            "max_tokens": found["max_target_positions"],
        }
        expected = {
            "decoder_attention_heads": sizes["heads"],
            "decoder_ffn_dim": sizes["ffn"],
            "activation_function": "gelu",
        }
        differing = [name for name, value in expected.items() if found[name] != value]
    except KeyError as error:
        raise UserError(f"{checkpoint.source}: config.json lacks {error.args[0]}; fetch it again") from None
    expected["scale_embedding"] = False
    differing += ["scale_embedding"] if found.get("scale_embedding") else []
    for name in differing:
        raise UserError(f"{checkpoint.source}: {name} {found[name]} is not supported, only {expected[name]}")
    dropout = found.get("dropout", 0.0)
    return WhisperConfig(**sizes, dropout=dropout, decoder_dropout=dropout)


def _own_tokens(checkpoint: Checkpoint, size: int) -> WhisperTokens:
    """The tokens of the checkpoint."""
    if EMBEDDING not in checkpoint.state:
        raise UserError(
            f"{checkpoint.source} has no token embedding ({EMBEDDING}): give --tokens, the folder of a token set, and "
            "a new embedding is made for it"
        )
    if (checkpoint.folder / TOKENIZER).is_file():
        return WhisperTokens(checkpoint.folder, size)
    if not (checkpoint.folder / "vocab.json").is_file() or not (checkpoint.folder / "merges.txt").is_file():
        raise UserError(f"{checkpoint.source} has no {TOKENIZER}, nor vocab.json and merges.txt: fetch it again")
    from transformers import WhisperTokenizerFast

    with tempfile.TemporaryDirectory() as folder:
        WhisperTokenizerFast.from_pretrained(checkpoint.folder).backend_tokenizer.save(f"{folder}/{TOKENIZER}")
        return WhisperTokens(folder, size)


def _with_prompt(
    config: WhisperConfig, checkpoint: Checkpoint, tokens: WhisperTokens, choices: Choices
) -> WhisperConfig:
    """Tokens that decoding starts and ends with, and those that it avoids, as `generate` in transformers has them.

    Without a language that is chosen or usual, the model keeps them all.

    The prompt is <|startoftranscript|> [<|language|> <|task|>] <|notimestamps|>.
    """
    generation, source, languages = checkpoint.generation, checkpoint.source, {}
    names = ["startoftranscript", "notimestamps"]
    if _is_multilingual(checkpoint):
        language = choices.language or _usual_language(generation, tokens)
        if language is None:
            languages = _languages(generation, tokens)
            language = next(iter(languages), "en")
        names[1:1] = [language.strip("<|>"), choices.task or generation.get("task") or "transcribe"]
    elif choices.language or choices.task:
        raise UserError(f"{source} knows English only: leave out --language and --task")
    prompt = [tokens.find(f"<|{name}|>") for name in names]
    for name, index in zip(names, prompt):
        if index is None:
            raise UserError(f"{source} has no token <|{name}|>: languages are written as in en, zh, fa")
    end = generation.get("eos_token_id", checkpoint.config.get("eos_token_id"))
    if end in (None, []):
        raise UserError(f"{source} names no token that ends a text (eos_token_id): fetch it again")
    return replace(
        config,
        prompt=tuple(prompt),
        languages=languages,
        end=end[0] if isinstance(end, list) else end,
        suppress=tuple(generation.get("suppress_tokens") or ()),
        begin_suppress=tuple(generation.get("begin_suppress_tokens") or ()),
    )


def _is_multilingual(checkpoint: Checkpoint) -> bool:
    # checkpoints made before transformers stored it have the size that OpenAI's own code decides by
    return checkpoint.generation.get("is_multilingual", checkpoint.config["vocab_size"] >= 51865)


def _languages(generation: dict, tokens: WhisperTokens) -> dict[str, int]:
    """Token of each language by its code, in the order of the tokens."""
    if generation.get("lang_to_id"):
        found = generation["lang_to_id"].items()
    else:
        found = ((tokens.piece(index), index) for index in range(tokens.size))
    codes = {match[1]: index for piece, index in found if (match := _LANGUAGE.fullmatch(piece))}
    return dict(sorted(codes.items(), key=lambda pair: pair[1]))


def _usual_language(generation: dict, tokens: WhisperTokens) -> Optional[str]:
    """What a checkpoint that was trained on for one language says about it."""
    if generation.get("language"):
        return generation["language"]
    forced = dict(generation.get("forced_decoder_ids") or ())
    return tokens.piece(forced[1]) if forced.get(1) is not None else None


def _replace_embedding(
    checkpoint: Checkpoint, config: WhisperConfig, choices: Choices
) -> tuple[TokenSet, tuple[str, ...]]:
    """Puts a new embedding, for the tokens that the user gave, in place of the old one if there is one."""
    if choices.language or choices.task:
        raise UserError("tokens of your own have no languages and tasks: leave out --language and --task")
    tokens = load_tokens(choices.tokens)
    if not isinstance(tokens, Tokens):
        raise UserError(
            f"{choices.tokens} holds the tokens of a Whisper checkpoint or language model; make others with bin/tokens"
        )
    old = checkpoint.state.get(EMBEDDING)
    std = float(old.std()) if old is not None else checkpoint.config.get("init_std", 0.02)
    generator = torch.Generator().manual_seed(choices.seed)
    new = torch.empty(tokens.size, config.width).normal_(std=std, generator=generator)
    checkpoint.state[EMBEDDING] = new
    lacking = "" if old is not None else ", which the checkpoint lacks"
    what = (
        f"{EMBEDDING} for {config.vocab_size:,} tokens{lacking}, by a new one for {tokens.size:,} tokens of another "
        f"set, normal with standard deviation {std:.3g} (seed {choices.seed}); it needs training"
    )
    if not choices.ctc_weight:
        return tokens, (what,)
    weight, bias = CTC_OUTPUT
    checkpoint.state[weight] = torch.empty(tokens.size, config.width).normal_(std=0.02, generator=generator)
    checkpoint.state[bias] = torch.zeros(tokens.size)
    return tokens, (what, f"a CTC output for {tokens.size:,} tokens on the encoder; it needs training")

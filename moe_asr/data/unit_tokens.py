"""The token set of a small language model that writes text for units: one token a character, one a unit.

A unit stands for a piece of sound and is written in brackets, as `[zh]`. Units, the end of a text and the unknown
character are special tokens: `encode_texts` makes none of them from a text that looks like one, and they vanish from
decoded text. It is an ordinary `tokenizer.json`, which `tokenizers` and `transformers` read.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moe_asr.data.prompts import split_prompt
from moe_asr.files import atomic_write

if TYPE_CHECKING:
    from tokenizers import Tokenizer

UNKNOWN, END, BLANK = "<unk>", "<|end|>", "[-]"
_UNIT = re.compile(r"\[[^\[\]\s]+\]")


def is_unit(text: str) -> bool:
    """Whether a text is one unit, such as `[zh]`."""
    return bool(_UNIT.fullmatch(text))


def build_tokenizer(texts: Iterable[str], units: Iterable[str], prompt: str, vocab_size: int = 0) -> Tokenizer:
    """A token for each of the most frequent characters of `texts`, each character of the prompt, and each unit.

    Ids: 0 `<unk>`, 1 `<|end|>`, characters by falling frequency, those of the prompt alone, units in their order with
    the blank `[-]` first.

    Args:
        texts: What the model shall write.
        units: What it shall read.
        prompt: What stands around the units, with `<speech>` in their place.
        vocab_size: Most characters of `texts` that get a token, the others become `<unk>`; 0 takes all.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    counts = Counter(character for text in texts for character in text)
    frequent = sorted(counts, key=lambda character: (-counts[character], character))[: vocab_size or None]
    written = dict.fromkeys([UNKNOWN, END, *frequent, *sorted(set("".join(split_prompt(prompt))))])
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(written)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()  # characters side by side; a space is a token of its own
    special = dict.fromkeys([UNKNOWN, END, BLANK, *sorted(units)])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: str | Path) -> None:
    """Writes `tokenizer.json`, and `tokenizer_config.json` for AutoTokenizer."""
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": UNKNOWN, "eos_token": END, "pad_token": END}
    with atomic_write(Path(folder) / "tokenizer.json") as file:
        file.write(tokenizer.to_str())
    with atomic_write(Path(folder) / "tokenizer_config.json") as file:
        json.dump({**names, "clean_up_tokenization_spaces": False}, file, indent=2)


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Ids of texts, character by character: `[zh]` is four characters here."""
    tokenizer.encode_special_tokens = True
    found = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    tokenizer.encode_special_tokens = False
    return [encoding.ids for encoding in found]


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> tuple[list[int], list[int]]:
    """Ids of what stands before and after the place of the speech; special tokens in it count as such.

    Raises:
        UserError: see `split_prompt`.
    """
    before, after = tokenizer.encode_batch_fast(list(split_prompt(prompt)), add_special_tokens=False)
    return before.ids, after.ids

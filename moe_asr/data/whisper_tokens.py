"""The token set of a Whisper checkpoint: byte-level BPE, stored in one `tokenizer.json` as `transformers` does.

Tokens written <|like this|> (end of text, languages, tasks, times) are special: no text becomes one of them, and they
vanish from decoded text.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from moe_asr.errors import UserError
from moe_asr.files import atomic_write

TOKENIZER = "tokenizer.json"
_SPECIAL = re.compile(r"<\|.*\|>")
_SPACE = "\u0120"  # how byte-level BPE writes a space


class WhisperTokens:
    """A token set: text to ids and back.

    Args:
        folder: Where `tokenizer.json` is.
        size: Number of tokens V of the model; those that the file does not name become special. 0 ends with its last.

    Raises:
        UserError: there is no such token set, it is damaged, or it has more tokens than the model.
    """

    def __init__(self, folder: str | Path, size: int = 0):
        path = Path(folder) / TOKENIZER
        if not path.is_file():
            raise UserError(f"no tokens at {path}: make them with python -m moe_asr.bin.import_whisper")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            pieces = _pieces(content)
            size = size or max(pieces) + 1
            if max(pieces) >= size:
                raise UserError(f"{path} has {max(pieces) + 1} tokens, but its model only {size}: they do not fit")
            content["added_tokens"] += [_special(index) for index in range(size) if index not in pieces]
            content["added_tokens"].sort(key=lambda token: token["id"])
            self._load(json.dumps(content, ensure_ascii=False))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path} is not the tokenizer of a Whisper checkpoint: fetch it again") from None

    def _load(self, content: str) -> None:
        import tokenizers  # comes with transformers; those who only use other tokens need not have it

        self._content = content
        self._tokenizer = tokenizers.Tokenizer.from_str(content)
        self._tokenizer.encode_special_tokens = True  # as the text that they are made of
        pieces = _pieces(json.loads(content))
        self._written = [pieces[index] for index in range(len(pieces))]
        if self._tokenizer.get_vocab() != {piece: index for index, piece in pieces.items()}:
            raise ValueError("ids are not those of the file")
        self._special = {index for index, piece in pieces.items() if _SPECIAL.fullmatch(piece)}
        self._space = self._tokenizer.token_to_id(_SPACE)

    def __reduce__(self):
        return _from_content, (self._content,)

    def save(self, folder: str | Path) -> None:
        """Writes the token set, atomically."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        with atomic_write(Path(folder) / TOKENIZER) as file:
            file.write(self._content)

    @property
    def digest(self) -> str:
        """SHA-256 of the token set."""
        return hashlib.sha256(self._content.encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of a text as Whisper writes it, with a space before the first word.

        Where that space would be a token of its own, as before Chinese characters, there is none: Whisper never begins
        with that token.
        """
        ids = self._tokenizer.encode(" " + text, add_special_tokens=False).ids
        return ids[1:] if ids[:1] == [self._space] else ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens vanish."""
        return self._tokenizer.decode([int(i) for i in ids if int(i) not in self._special]).strip()

    def piece(self, index: int) -> str:
        """The written form of one token."""
        return self._written[index]

    def find(self, piece: str) -> Optional[int]:
        """Id of the token written so, such as `<|en|>`; None if there is none."""
        return self._tokenizer.token_to_id(piece)

    @property
    def size(self) -> int:
        """Number of tokens V."""
        return len(self._written)


def _from_content(content: str) -> WhisperTokens:
    tokens = WhisperTokens.__new__(WhisperTokens)
    tokens._load(content)
    return tokens


def _pieces(content: dict) -> dict[int, str]:
    """Id to written form of all tokens; marks those written <|like this|> as special, which times are not."""
    pieces = {index: piece for piece, index in content["model"]["vocab"].items()}
    for token in content["added_tokens"]:
        pieces[token["id"]] = token["content"]
        token["special"] = token["special"] or bool(_SPECIAL.fullmatch(token["content"]))
    return pieces


def _special(index: int) -> dict:
    marks = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": index, "content": f"<|{index}|>", **marks, "special": True}

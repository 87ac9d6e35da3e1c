"""Token sets of pre-trained models, stored in one `tokenizer.json` as the `tokenizers` library writes it."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Optional

from moe_asr.errors import UserError
from moe_asr.files import atomic_write
from moe_asr.strict_json import parse_json

TOKENIZER = "tokenizer.json"
_MOST = 10_000_000  # tokens


class JsonTokens(ABC):
    """A token set: text to ids and back.

    No text becomes a special token, and special tokens vanish from decoded text.

    Args:
        folder: Where `tokenizer.json` is.
        size: Number of tokens V of the model; those that the file does not name become special. 0 ends with its last.
        name: What messages call the file; by default its path.

    Raises:
        UserError: there is no such token set, it is damaged, or it has more tokens than the model.
    """

    model: ClassVar[str]
    """What such a token set belongs to."""
    command: ClassVar[str]
    """Who makes it."""

    def __init__(self, folder: str | Path, size: int = 0, name: str | None = None):
        path = Path(folder) / TOKENIZER
        name = name or str(path)
        if not path.is_file():
            raise UserError(f"no tokens at {name}: make them with python -m moe_asr.bin.{self.command}")
        try:
            content = parse_json(path.read_bytes())
            pieces = self._pieces(content)
            if max(pieces) > _MOST:  # each number between becomes a token
                raise ValueError
            size = size or max(pieces) + 1
            if max(pieces) >= size:
                raise UserError(f"{name} has {max(pieces) + 1} tokens, but its model only {size}: they do not fit")
            content["added_tokens"] += [_unnamed(index) for index in range(size) if index not in pieces]
            content["added_tokens"].sort(key=lambda token: token["id"])
            self._load(json.dumps(content, ensure_ascii=False))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{name} is not the tokenizer of a {self.model}: fetch it again") from None

    def _load(self, content: str) -> None:
        import tokenizers  # comes with transformers; those who only use other tokens need not have it

        self._content = content
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(content)
        except Exception as error:  # the library raises no other
            raise ValueError(str(error)) from None
        self._tokenizer.encode_special_tokens = True  # as the text that they are made of
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        parsed = json.loads(content)
        pieces = self._pieces(parsed)
        self._written = [pieces[index] for index in range(len(pieces))]
        if self._tokenizer.get_vocab() != {piece: index for index, piece in pieces.items()}:
            raise ValueError("ids are not those of the file")
        self._special = {token["id"] for token in parsed["added_tokens"] if token["special"]}
        unknown = parsed["model"].get("unk_token")
        self._unknown = parsed["model"].get("unk_id") if unknown is None else self.find(unknown)

    def __reduce__(self):
        return _from_content, (type(self), self._content)

    def save(self, folder: str | Path) -> None:
        """Writes the token set, atomically."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        with atomic_write(Path(folder) / TOKENIZER) as file:
            file.write(self._content)

    @property
    def digest(self) -> str:
        """SHA-256 of the token set."""
        return hashlib.sha256(self._content.encode()).hexdigest()

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of a text."""

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

    def _pieces(self, content: dict) -> dict[int, str]:
        """Id to written form of all tokens."""
        vocab = content["model"]["vocab"]  # names with ids, or pairs of name and log-probability in the order of ids
        named = vocab.items() if isinstance(vocab, dict) else ((entry[0], i) for i, entry in enumerate(vocab))
        pieces = {index: piece for piece, index in named}
        return pieces | {token["id"]: token["content"] for token in content["added_tokens"]}


def _from_content(kind: type[JsonTokens], content: str) -> JsonTokens:
    tokens = kind.__new__(kind)
    tokens._load(content)
    return tokens


def _unnamed(index: int) -> dict:
    marks = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": index, "content": f"<|{index}|>", **marks, "special": True}

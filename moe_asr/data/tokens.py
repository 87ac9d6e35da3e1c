"""Token sets, through sentencepiece: characters, words, BPE or unigram pieces; and which kind lies in a folder."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, Union

import sentencepiece

from moe_asr.data.json_tokens import TOKENIZER, JsonTokens
from moe_asr.data.languages import language_piece
from moe_asr.data.llm_tokens import LLMTokens
from moe_asr.data.whisper_tokens import WhisperTokens
from moe_asr.errors import UserError
from moe_asr.files import atomic_write

BLANK, UNKNOWN, SOS_EOS = 0, 1, 2
_SPECIAL = {"pad_id": BLANK, "unk_id": UNKNOWN, "eos_id": SOS_EOS, "bos_id": -1}
_PIECES = {"pad_piece": "<blk>", "unk_piece": "<unk>", "eos_piece": "<sos/eos>"}
_MODEL = "tokens.model"

Kind = Literal["char", "word", "bpe", "unigram"]


def train_tokens(
    texts: Iterable[str], folder: str | Path, kind: Kind, vocab_size: int = 0, languages: Sequence[str] = ()
) -> Tokens:
    """Learns a token set and writes `tokens.model` and, to be read by people, `tokens.txt` into `folder`.

    Args:
        texts: Normalised transcripts.
        folder: Made if it is missing.
        kind: `char`, `word`, `bpe` or `unigram`; words are what spaces separate, such as units of sound.
        vocab_size: Number of tokens, with the special ones. Characters and words: 0 takes all that occur, otherwise it
            is an upper limit and the rarest become `<unk>`.
        languages: Codes that get a token each, such as `<|de|>`, which no text becomes and no text shows.

    Raises:
        UserError: no text, `vocab_size` does not suit it, or a language has no code or several.
    """
    marks = [language_piece(code) for code in languages]
    if len(set(marks)) < len(marks):
        raise UserError(f"a language is named twice: {', '.join(languages)}")
    special = 3 + len(marks)
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise UserError("no text to learn tokens from")
    # characters outside words need no word-start mark; pieces do, so that a first word is written like any other
    num_characters = len(set("".join(texts)) - {" "}) + 1
    if kind in ("char", "word"):
        limit = special + (num_characters if kind == "char" else len(set(" ".join(texts).split())))
        vocab_size = min(vocab_size, limit) if vocab_size else limit
        if vocab_size <= special:
            raise UserError(f"a vocabulary of {vocab_size} leaves no room for characters or words; 0 takes all")
    elif vocab_size < num_characters + special:
        raise UserError(
            f"{kind} tokens for this text need a vocabulary of {num_characters + special} at least"
            f" ({num_characters} characters and {special} special tokens), not {vocab_size}"
        )
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type=kind,
            vocab_size=vocab_size,
            character_coverage=1.0,
            add_dummy_prefix=kind != "char",
            normalization_rule_name="identity",
            max_sentence_length=1 << 20,
            num_threads=1,
            minloglevel=2,
            control_symbols=marks,
            **_SPECIAL,
            **_PIECES,
        )
    except RuntimeError as error:
        # sentencepiece puts the place in its source before the message: file(line) [condition] message
        reason = str(error).rsplit("] ", 1)[-1]
        raise UserError(f"cannot learn {vocab_size} {kind} tokens: {reason}") from None
    tokens = Tokens._from_bytes(model.getvalue())
    tokens.save(folder)
    return tokens


class Tokens:
    """A token set: text to ids and back. Ids 0, 1, 2 are `<blk>`, `<unk>` and `<sos/eos>`.

    Args:
        folder: Where `train_tokens` or `save` put it.

    Raises:
        UserError: there is no such token set.
    """

    def __init__(self, folder: str | Path):
        path = Path(folder) / _MODEL
        if not path.is_file():
            raise UserError(f"no tokens at {path}: make them with python -m moe_asr.bin.tokens")
        self._load(path.read_bytes(), path)

    @classmethod
    def _from_bytes(cls, model: bytes) -> Tokens:
        tokens = cls.__new__(cls)
        tokens._load(model, _MODEL)
        return tokens

    def _load(self, model: bytes, path) -> None:
        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
            for index in range(self.size):
                self.piece(index)
        except (RuntimeError, UnicodeDecodeError):
            raise UserError(f"{path} is not a sentencepiece model, or is damaged") from None
        found = [self._processor.IdToPiece(i) for i in (BLANK, UNKNOWN, SOS_EOS)]
        if found != ["<blk>", "<unk>", "<sos/eos>"]:
            raise UserError(f"{path} begins with {found}, expected <blk>, <unk>, <sos/eos>: make it with bin/tokens")

    def save(self, folder: str | Path) -> None:
        """Writes the token set, atomically."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        with atomic_write(Path(folder) / _MODEL, "wb") as file:
            file.write(self._model)
        with atomic_write(Path(folder) / "tokens.txt") as file:
            file.writelines(f"{self.piece(i)} {i}\n" for i in range(self.size))

    @property
    def digest(self) -> str:
        """SHA-256 of the token set."""
        return hashlib.sha256(self._model).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of a text; what is not in the token set becomes `<unk>`."""
        return self._processor.EncodeAsIds(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; `<blk>` and `<sos/eos>` vanish."""
        return self._processor.DecodeIds([int(i) for i in ids]).strip()

    def piece(self, index: int) -> str:
        """The written form of one token."""
        return self._processor.IdToPiece(index)

    @property
    def size(self) -> int:
        """Number of tokens V."""
        return self._processor.GetPieceSize()

    @property
    def languages(self) -> dict[str, int]:
        """Ids of the tokens of languages, by their codes."""
        pieces = {self.piece(i): i for i in range(SOS_EOS + 1, self.size) if self._processor.IsControl(i)}
        return {piece[2:-2]: i for piece, i in pieces.items()}

    @property
    def blank(self) -> int:
        """Id of the CTC blank."""
        return BLANK


TokenSet = Union[Tokens, JsonTokens]


def load_tokens(folder: str | Path, whisper: bool = False) -> TokenSet:
    """The token set in a folder, of whichever kind.

    Args:
        whisper: whether a `tokenizer.json` is read as that of a Whisper, which the file alone does not tell

    Raises:
        UserError: there is none, or it is damaged.
    """
    if not (Path(folder) / TOKENIZER).is_file():
        return Tokens(folder)
    return WhisperTokens(folder) if whisper else LLMTokens(folder)

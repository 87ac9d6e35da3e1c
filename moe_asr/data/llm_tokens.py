"""The token set of a causal language model: whatever its `tokenizer.json` says.

Tokens that the file marks as special are special; other added ones, such as units of pronunciation, are read from text.
"""

from __future__ import annotations

from moe_asr.data.json_tokens import JsonTokens
from moe_asr.errors import UserError


class LLMTokens(JsonTokens):
    """See `JsonTokens`."""

    model, command = "language model", "import_speech_llm"

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without those that the language model begins or ends texts with."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of a text in which special tokens may be written, such as <|im_start|>.

        Raises:
            UserError: a part of it cannot be written in these tokens.
        """
        failure = f"the prompt {text!r} cannot be written in the tokens of the language model"
        self._tokenizer.encode_special_tokens = False
        try:
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
        except Exception as error:  # the library raises no other: of a word that is in no list and has no stand-in
            raise UserError(f"{failure}: {error}") from None
        finally:
            self._tokenizer.encode_special_tokens = True
        spans = [span for index, span in zip(encoding.ids, encoding.offsets) if index != self._unknown]
        written = {place for begin, end in spans for place in range(begin, end)}
        lost = [character for place, character in enumerate(text) if place not in written and not character.isspace()]
        if lost:
            raise UserError(f"{failure}: there is none for {lost[0]!r}")
        return encoding.ids

    @property
    def special(self) -> tuple[int, ...]:
        """Ids of the special tokens, sorted."""
        return tuple(sorted(self._special))

    @property
    def opening(self) -> str:
        """What the language model begins texts with, such as <s>; empty for most."""
        return "".join(self.piece(index) for index in self._tokenizer.encode("", add_special_tokens=True).ids)

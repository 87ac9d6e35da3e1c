"""The token set of a Whisper checkpoint: byte-level BPE.

Tokens written <|like this|> (end of text, languages, tasks, times) are special.
"""

from __future__ import annotations

import re

from moe_asr.data.json_tokens import JsonTokens

_SPECIAL = re.compile(r"<\|.*\|>")
_SPACE = "\u0120"  # how byte-level BPE writes a space


class WhisperTokens(JsonTokens):
    """See `JsonTokens`."""

    model, command = "Whisper checkpoint", "import_whisper"

    def _load(self, content: str) -> None:
        super()._load(content)
        self._space = self._tokenizer.token_to_id(_SPACE)

    def encode(self, text: str) -> list[int]:
        """Ids of a text as Whisper writes it, with a space before the first word.

        Where that space would be a token of its own, as before Chinese characters, there is none: Whisper never begins
        with that token.
        """
        ids = self._tokenizer.encode(" " + text, add_special_tokens=False).ids
        return ids[1:] if ids[:1] == [self._space] else ids

    def _pieces(self, content: dict) -> dict[int, str]:
        """Id to written form of all tokens; marks those written <|like this|> as special, which times are not."""
        for token in content["added_tokens"]:
            token["special"] = token["special"] or bool(_SPECIAL.fullmatch(token["content"]))
        return super()._pieces(content)

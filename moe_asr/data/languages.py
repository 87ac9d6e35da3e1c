"""Codes of languages: as corpora write them, and as the tokens of a model do."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Optional

from moe_asr.data.manifests import Utterance
from moe_asr.errors import UserError

_CODE = re.compile(r"[a-z]{2,3}([-_][A-Za-z0-9]+)*")


def find_language(codes: Collection[str], name: str) -> Optional[str]:
    """Which of the codes stands for a language: its own name, or else what comes before its first - or _.

    So zh-CN and zh_TW are zh for a model that knows zh alone. None if there is no such code.
    """
    if name in codes:
        return name
    short = re.split("[-_]", name)[0].lower()
    return short if short in codes else None


def check_languages(utterances: Iterable[Utterance], codes: Collection[str], instead: str) -> None:
    """Refuses utterances of languages that a model has no token for, before anything is computed.

    Args:
        codes: languages of the model
        instead: what to do if the labels are right

    Raises:
        UserError: names the first unknown ones
    """
    unknown = sorted({u.language for u in utterances if find_language(codes, u.language) is None})
    if unknown:
        raise UserError(
            f"language {', '.join(map(repr, unknown[:5]))} is none that the model knows, which are "
            f"{', '.join(codes)}: correct the labels, or {instead}"
        )


def language_piece(code: str) -> str:
    """The token of a language, such as <|de|>.

    Raises:
        UserError: it is no code of a language
    """
    if not _CODE.fullmatch(code):
        raise UserError(f"'{code}' is no code of a language: write it as in de, zh-CN")
    return f"<|{code}|>"

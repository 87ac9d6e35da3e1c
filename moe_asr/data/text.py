"""Text normalisation, each kind with a name.

The name is stored with a model, and the same normaliser is applied to references and hypotheses when scoring.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from moe_asr.data.mandarin import join_thousands, read_numerals, simplify
from moe_asr.errors import UserError

_APOSTROPHES = dict.fromkeys(map(ord, "\u2018\u2019\u02bc\u0060\u00b4"), "'")
_HAN = r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"


def normalise(name: str, text: str) -> str:
    """Applies the normaliser called `name`; every normaliser is idempotent.

    Raises:
        UserError: there is no normaliser of that name.
    """
    if name not in NORMALISERS:
        raise UserError(f"unknown text normaliser '{name}'; there are: {', '.join(sorted(NORMALISERS))}")
    return NORMALISERS[name](text)


def _none(text: str) -> str:
    """Only surrounding and repeated white space goes."""
    return " ".join(text.split())


def _english(text: str) -> str:
    """Lower-case a-z, digits and apostrophes inside words; accents are dropped, all else separates words."""
    text = unicodedata.normalize("NFKD", _plain(text).lower())
    text = "".join(c for c in text if not unicodedata.combining(c))
    words = re.findall(r"[a-z0-9']+", text)
    return " ".join(word for word in (word.strip("'") for word in words) if word)


def _multilingual(text: str) -> str:
    """Lower case; letters, marks, digits and apostrophes inside words of any script; all else separates words."""
    text = unicodedata.normalize("NFKC", _plain(text).lower())
    # zero-width characters shape letters (Persian) but are not heard, and are used unevenly
    text = text.replace("\u200c", " ").replace("\u200d", "").replace("\u200b", "")
    text = "".join(c if c == "'" or unicodedata.category(c)[0] in "LMN" else " " for c in text)
    return " ".join(word for word in (word.strip("'") for word in text.split()) if word)


def _mandarin(text: str) -> str:
    """As `multilingual`, with numerals as read aloud, in simplified characters, without spaces beside Han.

    So neither writing nor spacing habits matter. Erhua stays as it is: 儿 is heard.
    """
    text = _multilingual(read_numerals(_plain(join_thousands(text))))
    # last, because what punctuation separated is converted together the next time
    return simplify(re.sub(rf"(?<=[{_HAN}]) | (?=[{_HAN}])", "", text))


def _plain(text: str) -> str:
    """Compatible characters made one (full width, mathematical, ligatures), and all apostrophes '."""
    # before, because a free-standing acute falls apart into a space and a mark; after, because some letters hold one
    return unicodedata.normalize("NFKC", text.translate(_APOSTROPHES)).translate(_APOSTROPHES)


NORMALISERS: dict[str, Callable[[str], str]] = {
    "none": _none,
    "english": _english,
    "mandarin": _mandarin,
    "multilingual": _multilingual,
}

"""JSON as the standard has it (RFC 8259), from files that anybody may have written."""

from __future__ import annotations

import json
from typing import Any

_BOM = b"\xef\xbb\xbf"


def parse_json(text: str | bytes) -> Any:
    """The value that a text stands for.

    Python's own reader also takes NaN and Infinity, keeps the last of several values of one name, makes characters that
    cannot be written again of lone surrogates, and stops with other errors at a million brackets.

    Args:
        text: bytes are UTF-8

    Raises:
        ValueError: it is no JSON, or does what is said above.
    """
    if isinstance(text, bytes):
        text = text.removeprefix(_BOM).decode("utf-8")
    try:
        value = json.loads(text, parse_constant=_no_number, parse_float=_finite, object_pairs_hook=_distinct)
        if "\\u" in text:  # the only way to a surrogate
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # UnicodeEncodeError is a ValueError
        return value
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _finite(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), -float("inf")):
        raise ValueError(f"{digits[:20]} is too large")
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{max(names, key=names.count)!r} is there twice")
    return values

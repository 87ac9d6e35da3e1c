"""Mandarin text as it is heard: simplified characters, and numerals as they are read aloud.

How a numeral is read depends on what it counts; the rule here is simple, and the same for references and hypotheses:

    2008年      二零零八年        four digits before 年: one after another
    007, 95588123456            a leading zero, or more than eight digits: one after another (codes, telephones)
    1,050       一千零五十        anything else: a number; always 二, never 两
    3.14        三点一四          after a point: one after another
    50%         百分之五十
    〇          零

Signs, ranges, fractions and times (-5, 3-5, 1/2, 8:30) lose what stands between their numbers, as all punctuation does.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

from moe_asr.errors import UserError

_DIGITS = "零一二三四五六七八九"
_UNITS = ("千", "百", "十", "")
_LONGEST = 8  # digits of what is read as a number
_COMMA = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_NUMBER = re.compile(r"([0-9]+)((?:\.[0-9]+)*)(?:(%)|(?=(年)))?")


def join_thousands(text: str) -> str:
    """`1,050` becomes `1050`. A full-width comma separates two numbers, so this comes before widths are made one."""
    return _COMMA.sub("", text)


def read_numerals(text: str) -> str:
    """Arabic numerals of half width become Chinese characters, as above."""
    return _NUMBER.sub(_read, text.replace("〇", "零"))


def simplify(text: str) -> str:
    """Traditional characters become simplified ones, by the characters and phrases of OpenCC's `t2s`.

    Raises:
        UserError: OpenCC is not installed.
    """
    convert = _converter()
    while (converted := convert(text)) != text:  # a few characters take two steps: 薴, 苧, 苎
        text = converted
    return text


@functools.lru_cache
def _converter() -> Callable[[str], str]:
    try:
        from opencc import OpenCC
    except ImportError:
        raise UserError("the text normaliser 'mandarin' needs OpenCC: pip install opencc") from None
    return OpenCC("t2s").convert


def _read(match: re.Match) -> str:
    whole, decimals, percent, year = match.groups()
    if len(whole) > _LONGEST or (whole[0] == "0" and len(whole) > 1) or (year and not decimals and len(whole) == 4):
        spoken = _one_by_one(whole)
    else:
        spoken = _number(int(whole))
    spoken += "".join(_one_by_one(f".{part}") for part in decimals.split(".")[1:])
    return f"百分之{spoken}" if percent else spoken


def _one_by_one(digits: str) -> str:
    return "".join("点" if digit == "." else _DIGITS[int(digit)] for digit in digits)


def _number(number: int) -> str:
    """Below 10^8: 一千零五, 十二, 三万零六十."""
    high, low = divmod(number, 10_000)
    spoken = f"{_number(high)}万{_thousands(low)}" if high else _thousands(low).lstrip("零")
    spoken = spoken.rstrip("零") or "零"
    return spoken.removeprefix("一") if spoken.startswith("一十") else spoken


def _thousands(number: int) -> str:
    """Four digits with their units; zeros in a row are read once: 零三百零五, 零零 as 零."""
    pairs = zip(f"{number:04d}", _UNITS)
    return re.sub("零+", "零", "".join(_DIGITS[int(d)] + unit if d != "0" else "零" for d, unit in pairs))

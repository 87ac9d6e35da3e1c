"""Hostile inputs for parsers: arbitrary bytes, and good files that were damaged.

Inputs are the same in every run. `MOE_ASR_FUZZ=20000` tries as many of each instead of 1,000.
"""

import copy
import json
import os
import warnings

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from moe_asr.config import one_line
from moe_asr.errors import UserError

EXAMPLES = int(os.environ.get("MOE_ASR_FUZZ", "1000"))
REFUSED = object()
# what parsers of text trip over: other line ends, signs that look like white space, numbers that are none
SIGNS = [b"\x00", b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\r", b"\n", b"\r\n", b"\t", b" ", b"\x1f"]
SIGNS += [c.encode() for c in ("\x85", "\u2028", "\u3000", "\u200b", "\ufffd", "\u0130", "\u0664", "\U0001f600")]
SIGNS += [b"nan", b"inf", b"-1", b"0", b"1e999", b"9" * 40, b"9" * 5000, b"-", b"_", b"1_000", b"true", b"null", b"~"]
SIGNS += [
    b'"',
    b"'",
    b"\\",
    b"|",
    b"#",
    b"..",
    b"/",
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b",",
    b"\\ud800",
    b"&a ",
    b"*a",
    b"!!",
]


def hostile(function):
    """A test of `EXAMPLES` inputs, the same ones every time."""
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    return settings(
        max_examples=EXAMPLES, derandomize=True, deadline=None, database=None, suppress_health_check=checks
    )(function)


def attempt(parser, *arguments, **options):
    """What a parser makes of an input; REFUSED if it says in one line what is wrong with it. All else is a finding."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return parser(*arguments, **options)
    except UserError as error:
        message = one_line(error)
        assert message and message.isprintable(), f"not one line that can be printed: {message!r}"
        assert len(message) < 2000, f"no line that anybody reads: {len(message)} characters"
        return REFUSED


@st.composite
def damaged(draw, content: bytes, signs=()):
    """A good file after one to four accidents: bytes lost, doubled, overwritten, moved, or others put between."""
    size = len(content)
    words = SIGNS + [sign if isinstance(sign, bytes) else sign.encode() for sign in signs]
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.integers(0, 6))
        place = draw(st.integers(0, max(size, 1)))
        if kind == 0:
            content = content[:place]
        elif kind == 1:
            content = content[:place] + content[place + draw(st.integers(1, 20)) :]
        elif kind == 2:
            content = content[:place] + draw(st.binary(min_size=1, max_size=8)) + content[place:]
        elif kind == 3:
            content = content[:place] + content[place : place + 1].translate(_FLIPPED) + content[place + 1 :]
        elif kind == 4:
            other = draw(st.integers(0, max(size, 1)))
            content = content[:place] + content[other : other + draw(st.integers(1, 60))] + content[place:]
        else:  # the commonest
            content = content[:place] + draw(st.sampled_from(words)) + content[place + draw(st.integers(0, 4)) :]
    return content


_FLIPPED = bytes((byte + 128) % 256 if byte % 2 else byte ^ 1 for byte in range(256))


def files(*good: bytes, signs=()):
    """Good files, damaged ones, and bytes of all kinds."""
    return st.one_of(
        *(st.just(content) for content in good),
        *(damaged(content, signs) for content in good for _ in range(4)),
        st.binary(max_size=300),
    )


VALUES = [None, True, False, 0, -1, 1.5, 1e308, float("nan"), float("inf"), 10**30, "", "a b", "\ud800", "\n", [], {}]
VALUES += [["a"], [[]], {"a": None}, [None], "../x", "/x", "0", "x" * 3000]


@st.composite
def altered(draw, value):
    """JSON of a good value in which up to three places hold something else, or are gone, or come twice."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(0, 3))):
        place = value
        while isinstance(place, (dict, list)) and place:
            key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
            if isinstance(place[key], (dict, list)) and place[key] and draw(st.booleans()):
                place = place[key]
                continue
            kind = draw(st.integers(0, 4))
            if kind == 0:
                del place[key]
            elif kind == 1 and isinstance(place, dict):
                place["unknown"] = place[key]
            elif kind == 1:
                place.append(place[key])
            else:
                place[key] = copy.deepcopy(draw(st.sampled_from(VALUES)))
            break
    return json.dumps(value).encode()

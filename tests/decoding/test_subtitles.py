import random
import re

import pytest

from moe_asr.decoding.subtitles import Cue, lines, srt, time_stamp, width

STAMP = re.compile(r"(\d\d+):([0-5]\d):([0-5]\d),(\d{3})")


def read(text):
    """A strict reader of SRT: (start, end, lines) of each cue, in milliseconds."""
    cues = []
    for number, block in enumerate(text.split("\n\n") if text else [], 1):
        head, times, *rest = block.rstrip("\n").split("\n")
        assert head == str(number)
        start, end = times.split(" --> ")
        cues.append((*(_read(stamp) for stamp in (start, end)), rest))
    return cues


def _read(stamp):
    hours, minutes, seconds, rest = map(int, STAMP.fullmatch(stamp).groups())
    return ((hours * 60 + minutes) * 60 + seconds) * 1000 + rest


def test_an_example_to_the_letter():
    cues = [Cue(0.5, 2.25, "hello"), Cue(3.0, 4.0, ""), Cue(3661.9996, 3663, "one two")]
    assert srt(cues) == (
        "1\n00:00:00,500 --> 00:00:02,250\nhello\n\n2\n01:01:02,000 --> 01:01:03,000\none two\n"
    )  # fmt: skip
    assert srt([]) == "" and time_stamp(360_000_001) == "100:00:00,001"


@pytest.mark.parametrize("text, expected", [
    ("aa bb cc", ["aa bb", "cc"]), ("aaaaaaa b", ["aaaaa", "aa b"]), ("", []), ("你好世界", ["你好", "世界"]),
    ("a你 好b", ["a你", "好b"]), ("a 你", ["a 你"]), ("你a b", ["你a b"]), ("e\u0301" * 6, ["e\u0301" * 5, "e\u0301"]),
])  # fmt: skip
def test_lines(text, expected):
    assert lines(text, 5) == expected


def test_widths():
    assert width("abc") == 3 and width("你好") == 4 and width("e\u0301") == 1 and width("ｆ") == 2


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_said_cues_do_not_overlap_and_no_character_is_lost(seed):
    rng = random.Random(seed)
    now, cues = 0.0, []
    for _ in range(30):
        start, now = now + rng.choice([0, rng.random()]), now + 1 + 9 * rng.random()
        alphabet = rng.choice(["abc d", "你好 a", "кот ", ["e\u0301", " ", "x"]])
        cues.append(Cue(start, now, " ".join("".join(rng.choices(alphabet, k=rng.randrange(300))).split())))
    found = read(srt(cues))
    assert all(before[1] <= after[0] for before, after in zip(found, found[1:]))
    assert all(start < end for start, end, _ in found)
    for _, _, shown in found:
        assert 1 <= len(shown) <= 2 and all(0 < width(line) <= 42 and line == line.strip() for line in shown)
    said = "".join("".join(cue.text.split()) for cue in cues)
    assert "".join("".join("".join(shown).split()) for *_, shown in found) == said
    assert found[0][0] == round(1000 * next(cue.start for cue in cues if cue.text))


def test_a_long_text_is_shared_evenly():
    found = read(srt([Cue(0, 9, " ".join(["word"] * 18))]))  # 89 columns: two lines of 42 are not enough
    assert [[len(line) for line in shown] for *_, shown in found] == [[24, 24], [24, 14]]
    assert [start for start, *_ in found] == [0, round(9000 * 49 / 88)] and found[-1][1] == 9000
    assert [shown for *_, shown in read(srt([Cue(0, 9, "a" * 40 + " bcd")]))] == [["a" * 40, "bcd"]]

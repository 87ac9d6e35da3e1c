import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_asr.data.mandarin import join_thousands, read_numerals, simplify
from moe_asr.data.text import normalise
from moe_asr.errors import UserError

VALUES = {c: n for n, c in enumerate("零一二三四五六七八九")}
WIDE = st.characters(min_codepoint=0x3000, max_codepoint=0xFFEF)


def value(spoken):
    """The number that is read aloud: 万 multiplies all before it, 千, 百 and 十 the digit before them."""
    high, found, low = spoken.rpartition("万")
    if found:
        return 10_000 * value(high) + value(low)
    total, digit = 0, 1  # 十 alone is ten
    for c in low:
        if c in "千百十":
            total += {"千": 1000, "百": 100, "十": 10}[c] * digit
            digit = 0
        else:
            digit = VALUES[c]
    return total + (digit if low and low[-1] not in "千百十" else 0)


@given(st.integers(0, 99_999_999))
def test_a_number_is_read_as_what_it_is(number):
    spoken = read_numerals(str(number))
    assert value(spoken) == number
    assert "零零" not in spoken and (number == 0 or not spoken.endswith("零")) and not spoken.startswith("一十")


@pytest.mark.parametrize(
    "text, expected",
    [
        ("10 11 20 110", "十 十一 二十 一百一十"),
        ("1005 1050 1500", "一千零五 一千零五十 一千五百"),
        ("10001 10010 120000", "一万零一 一万零一十 十二万"),
        ("2008年 98年 20080年", "二零零八年 九十八年 二万零八十年"),
        ("007 95588123456", "零零七 九五五八八一二三四五六"),
        ("3.14 0.50 1.2.3", "三点一四 零点五零 一点二点三"),
        ("50% 99.5%", "百分之五十 百分之九十九点五"),
        ("2008.5年", "二千零八点五年"),
        ("二〇〇八年", "二零零八年"),
        ("mp3", "mp三"),
    ],
)
def test_numerals(text, expected):
    assert read_numerals(text) == expected


def test_commas_inside_numbers():
    assert join_thousands("1,050和12,345,678") == "1050和12345678"
    assert join_thousands("1,05 10,0000 1，000 a,100") == "1,05 10,0000 1，000 a,100"


@pytest.mark.parametrize(
    "text, expected",
    [
        ("後來他們去臺灣買書", "后来他们去台湾买书"),
        ("乾隆年間的乾果", "乾隆年间的干果"),  # by phrases, not by characters alone
        ("他後天來", "他后天来"),
        ("皇后", "皇后"),
        ("薴", "苎"),
    ],
)
def test_simplified(text, expected):
    pytest.importorskip("opencc")
    assert simplify(text) == expected == simplify(expected)


def test_every_character_settles():
    pytest.importorskip("opencc")
    for code in (*range(0x3000, 0xA000), *range(0xF900, 0xFB00), *range(0x20000, 0x2B740)):
        once = simplify(chr(code))
        assert simplify(once) == once


@pytest.mark.parametrize(
    "text, expected",
    [
        ("亨利·高汀是一名马来西亚演员、模特儿及主持。", "亨利高汀是一名马来西亚演员模特儿及主持"),
        ("家庭裁判所調査官，簡稱「調査官」。", "家庭裁判所调查官简称调查官"),
        ("２００８年８月８日，有１,０５０人。", "二零零八年八月八日有一千零五十人"),
        ("分别为100，200和300", "分别为一百二百和三百"),
        ("用 iPhone 6 上网", "用iphone六上网"),
        ("オカ・ヤド，是日本的漫画家", "オカ ヤド是日本的漫画家"),
        ("这儿有５０％的人", "这儿有百分之五十的人"),
        ("hello world，OK！", "hello world ok"),
    ],
)
def test_whole_sentences(text, expected):
    pytest.importorskip("opencc")
    assert normalise("mandarin", text) == expected


@given(st.text(st.one_of(WIDE, st.sampled_from("0123 .,%年"))))
def test_idempotent_and_without_digits(text):
    pytest.importorskip("opencc")
    once = normalise("mandarin", text)
    assert normalise("mandarin", once) == once
    assert not any(c in "0123456789〇" for c in once)


def test_without_opencc_one_line_says_what_to_install(monkeypatch):
    from moe_asr.data import mandarin

    monkeypatch.setitem(sys.modules, "opencc", None)
    mandarin._converter.cache_clear()
    with pytest.raises(UserError, match="pip install opencc"):
        normalise("mandarin", "你好")
    assert normalise("multilingual", "你好") == "你好"

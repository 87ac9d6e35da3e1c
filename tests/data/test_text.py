import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_asr.data.text import NORMALISERS, normalise
from moe_asr.errors import UserError


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Hello, World!", "hello world"),
        ("  it’s   Anna`s ", "it's anna's"),
        ("'quoted' rock 'n' roll", "quoted rock n roll"),
        ("mother-in-law… café naïve", "mother in law cafe naive"),
        ("ＡＢＣ １２", "abc 12"),
        ("*", ""),
        ("...", ""),
        ("你好", ""),
    ],
)
def test_english(text, expected):
    assert normalise("english", text) == expected


@pytest.mark.parametrize(
    "text, expected",
    [
        ("你好，世界！", "你好世界"),
        ("我 用 Python 写 代码", "我用python写代码"),
        ("use   GPU now 吧", "use gpu now吧"),
    ],
)
def test_mandarin(text, expected):
    assert normalise("mandarin", text) == expected


@pytest.mark.parametrize(
    "text, expected",
    [
        ("¿Qué tal, señor?", "qué tal señor"),
        ("L’été — déjà", "l'été déjà"),
        ("می‌خواهم", "می خواهم"),
        ("हिन्दी में।", "हिन्दी में"),
        ("e\u0301te\u0301", "été"),
        ("STRASSE ΑΒΓ", "strasse αβγ"),
        ("𝕊", "s"),
    ],
)
def test_multilingual(text, expected):
    assert normalise("multilingual", text) == expected


def test_none_keeps_everything_but_space():
    assert normalise("none", " Hello,\t *World* \n") == "Hello, *World*"


@pytest.mark.parametrize("name", NORMALISERS)
@given(text=st.text())
def test_idempotent_and_without_stray_space(name, text):
    once = normalise(name, text)
    assert normalise(name, once) == once
    assert once == " ".join(once.split())


def test_unknown_name_lists_the_known():
    with pytest.raises(UserError, match="'englsh'; there are: english, mandarin, multilingual, none"):
        normalise("englsh", "x")

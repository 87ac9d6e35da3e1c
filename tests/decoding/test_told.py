"""What is told of the speech is fitted to what a model and its experts ask for."""

from types import SimpleNamespace

import pytest

from moe_asr.decoding.told import Told, check_told
from moe_asr.errors import UserError

CODES = {"de": 3, "zh": 4}


def check(language=None, accent=None, codes=(), key=None, domains=(), source="label"):
    recogniser = SimpleNamespace(languages=dict(codes))
    adapted = None
    if key:
        config = SimpleNamespace(domain_key=key, domains=domains)
        adapted = SimpleNamespace(config=config, domain_source=lambda *options: source)
    return check_told(language, accent, recogniser, adapted, "exp/x" if key else None)


def test_what_fits():
    assert check() == check(key="accent", domains=("a", "b"), source=None) == Told()
    assert check(key="accent", domains=("a", "b"), source="posterior") == Told()
    for source in ("posterior", "label", "uniform"):
        assert check(accent="b", key="accent", domains=("a", "b"), source=source) == Told(accent="b", route="label")
    assert check("zh-TW", codes=CODES) == Told("zh-TW")
    assert check("zh-CN", codes=CODES, key="language", domains=("de", "zh")) == Told("zh", route="label")
    assert check("fa", key="language", domains=("de", "fa")) == Told("fa", route="label")
    assert check("de", "b", CODES, "accent", ("a", "b")) == Told("de", "b", route="label")
    assert check("de", codes=CODES, key="accent", domains=("a", "b"), source="posterior") == Told("de")


@pytest.mark.parametrize("language", [None, "detect"])
def test_languages_that_are_not_told_are_detected(language):
    by_language = dict(codes=CODES, key="language", domains=("de", "zh"))
    assert check(language, codes=CODES) == Told(prompt="detect")
    assert check(language, "b", CODES, "accent", ("a", "b")) == Told("", "b", "detect", "label")
    assert check(language, **by_language) == Told(prompt="detect", route="model")
    for source in ("router", "model", "posterior", "uniform"):
        assert check(language, **by_language, source=source) == Told(prompt="detect")


@pytest.mark.parametrize("message, options", [
    ("accent is for an adaptation whose routers see the accent", dict(accent="a")),
    ("accent is for an adaptation", dict(accent="a", key="accent", source=None)),
    ("accent is for an adaptation", dict(accent="a", key="speaker", domains=("a",))),
    ("accent x is none that exp/x knows, which are a, b", dict(accent="x", key="accent", domains=("a", "b"))),
    ("language is for models that know several", dict(language="de")),
    ("language is for models that know several", dict(language="detect", key="language", domains=("de",))),
    ("language fa is none that the model knows, which are de, zh", dict(language="fa", codes=CODES)),
    ("language de is none that exp/x knows, which are fr", dict(language="de", codes=CODES, key="language",
                                                               domains=("fr",))),
    ("exp/x must be told the accent of what it hears: give --accent, one of a, b", dict(key="accent",
                                                                                       domains=("a", "b"))),
    ("must be told the language of what it hears: give --language, one of de", dict(key="language", domains=("de",))),
    ("must be told the speaker of what it hears: this command cannot", dict(key="speaker", domains=("a",))),
])  # fmt: skip
def test_what_does_not(message, options):
    with pytest.raises(UserError, match=message):
        check(**options)

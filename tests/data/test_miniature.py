import numpy as np
import pytest

from moe_asr.data.miniature import Voice, pieces, random_voice, sentences, speak


def test_speech_is_the_same_for_any_number_of_jobs_and_differs_by_speaker():
    pytest.importorskip("espeakng_loader")
    lines = {name: ["two red birds sing", "go"] for name in ("19", "26", "32")}
    first, second = speak(lines, 1), speak(dict(reversed(lines.items())), 2)
    for name in lines:
        assert all(np.array_equal(a, b) for a, b in zip(first[name], second[name]))
        assert [samples.dtype for samples in first[name]] == [np.float32] * 2
        assert len(first[name][0]) > 8000 > 0 and np.abs(first[name][0]).max() > 0.05
    assert not np.array_equal(first["19"][0][:5000], first["26"][0][:5000])


def test_voices():
    pytest.importorskip("espeakng_loader")
    assert random_voice("19") == random_voice("19") != random_voice("26")
    voices = {name: Voice("cmn", "f2", 180, 50, stretch=stretch) for name, stretch in (("a", 1.0), ("b", 1.25))}
    spoken = speak(dict.fromkeys(voices, ["jin1 tian1 hen3 re4"]), voices=voices)
    assert len(spoken["a"][0]) / len(spoken["b"][0]) == pytest.approx(1.25, rel=0.05)  # higher, and so faster


def test_sentences_and_pieces():
    texts = sentences(7, "a")
    assert texts == sentences(7, "a") != sentences(7, "b") and all(len(text.split()) == 4 for text in texts)
    assert pieces(texts, 2) == [texts[:4], texts[4:]]

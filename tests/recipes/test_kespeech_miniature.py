"""The miniature of KeSpeech and AISHELL-1: true layouts, accents that differ, and what is to be rejected."""

import filecmp
import importlib.util
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from moe_asr.data import aishell, kespeech
from moe_asr.data.checks import CheckConfig, check
from moe_asr.data.miniature import Voice, speak
from moe_asr.data.tables import read_table, write_table
from moe_asr.data.text import normalise

LOCAL = Path(__file__).resolve().parents[2] / "egs/kespeech/asr_llm1/local"
SMALL = "--train 6 --dev 2 --test 2 --general_train 12 --general_dev 2 --general_test 2 --speakers 2".split()


def load(name):
    """A module of the recipe, under a name of its own: other recipes have modules of the same name."""
    spec = importlib.util.spec_from_file_location(f"kespeech_{name}", LOCAL / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


accents, grammar = load("accents"), load("grammar")


def make(folder, *options):
    pytest.importorskip("espeakng_loader")
    command = [sys.executable, LOCAL / "miniature.py", "--out_dir", folder, *SMALL, *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    return make(tmp_path_factory.mktemp("corpora"))


def checked(rows, folder):
    pytest.importorskip("opencc")
    write_table(folder / "table.tsv", rows)
    return check(read_table(folder / "table.tsv"), "mandarin", CheckConfig())


def test_all_parts_are_there_and_two_utterances_are_rejected(corpora, tmp_path):
    sizes = {"train_phase1": 6, "train_phase2": 1, "dev_phase1": 2, "dev_phase2": 1, "test": 2}
    vocabulary = {c for s in grammar.sentences(2000, random.Random(0)) for c in s.text}
    for part in kespeech.PARTS:
        utterances, rejections = checked(kespeech.read_part(corpora / "KeSpeech", part), tmp_path)
        rejected = [r.reason for r in rejections]
        assert rejected == (["truncated audio", "empty text"] if part == "train_phase1" else [])
        assert len(utterances) + len(rejected) == sizes[part] * len(accents.ACCENTS)
        assert {u.accent for u in utterances} == {kespeech.STANDARD, "Southwestern", "Jiao-Liao", "Jiang-Huai"}
        assert {c for u in utterances for c in u.text} <= vocabulary
        assert all(0.8 < u.num_samples / u.sample_rate < 8 for u in utterances)
    for part, size in (("train", 12), ("dev", 2), ("test", 2)):
        utterances, rejections = checked(aishell.read_part(corpora / "aishell", part), tmp_path)
        assert len(utterances) == size and not rejections and {u.accent for u in utterances} == {"Mandarin"}


def test_training_dev_and_test_share_neither_speakers_nor_sentences(corpora):
    pytest.importorskip("opencc")
    rows = {part: kespeech.read_part(corpora / "KeSpeech", part) for part in kespeech.PARTS}
    rows |= {part: aishell.read_part(corpora / "aishell", part) for part in aishell.PARTS}
    texts = {part: {normalise("mandarin", r.text) for r in rows[part]} for part in rows}
    for other in ("dev", "dev_phase1", "dev_phase2", "test"):
        for part in ("train", "train_phase1", "train_phase2"):
            assert not {r.speaker for r in rows[part]} & {r.speaker for r in rows[other]}
            assert not texts[part] & texts[other]
    assert {r.speaker for r in rows["train_phase2"]} <= {r.speaker for r in rows["train_phase1"]}


def test_the_same_for_any_number_of_jobs(corpora, tmp_path):
    again = make(tmp_path, "--num_jobs", "1")
    files = [path.relative_to(corpora) for path in corpora.rglob("*") if path.is_file()]
    assert len(files) > 60
    assert filecmp.cmpfiles(corpora, again, files, shallow=False) == (files, [], [])


def test_sentences_are_written_in_three_ways_which_the_normaliser_makes_one():
    pytest.importorskip("opencc")
    found = grammar.sentences(400, random.Random(1))
    for sentence in found:
        ways = (sentence.text, sentence.with_digits(), sentence.traditional(), " ".join(sentence.words))
        assert {normalise("mandarin", way) for way in ways} == {sentence.text}
        assert len(sentence.text) == len(sentence.pinyin)
    assert 60 <= len({c for s in found for c in s.text}) <= 80
    assert any(s.text != s.with_digits() for s in found) and any(s.text != s.traditional() for s in found)


def test_accents_change_sounds_and_tones():
    said = {name: accents.pronounce(["zhong1", "ni3", "sheng5", "hua4"], a) for name, a in accents.ACCENTS.items()}
    assert said == {
        "Mandarin": "zhong1 ni3 sheng5 hua4",
        "Southwestern": "zong1 li4 sen5 hua2",
        "Jiao-Liao": "zhong3 ni1 xing5 hua4",
        "Jiang-Huai": "zhong4 li3 shen5 fa1",
    }


def test_an_accent_sounds_like_itself_and_not_like_another_of_the_same_voice():
    pytest.importorskip("espeakng_loader")
    lines = grammar.sentences(6, random.Random(0))
    said = {name: [accents.pronounce(s.pinyin, a) for s in lines] * 2 for name, a in accents.ACCENTS.items()}
    spoken = speak(said, 1, dict.fromkeys(said, Voice("cmn", "m1", 190, 50)))
    frames = {name: [spectra(samples) for samples in all_of_it] for name, all_of_it in spoken.items()}
    for name in frames:  # against the second time, for espeak-ng never says the same thing twice
        to = {other: sum(map(distance, frames[name][:6], frames[other][6:])) / 6 for other in frames}
        assert min(to, key=to.get) == name, to


def spectra(samples):
    """Log spectra (T, 64) up to 4 kHz, every 25 ms: narrow enough to show the pitch."""
    windows = np.lib.stride_tricks.sliding_window_view(samples, 1024)[::400] * np.hanning(1024)
    return np.log(np.abs(np.fft.rfft(windows))[:, :256].reshape(len(windows), 64, 4).sum(2) + 1e-1)


def distance(first, second):
    """Mean distance of frames along the best alignment in time."""
    costs = np.abs(first[:, None] - second).mean(2)
    best = np.full((len(first) + 1, len(second) + 1), np.inf)
    best[0, 0] = 0
    for i in range(len(first)):
        for j in range(len(second)):
            best[i + 1, j + 1] = costs[i, j] + min(best[i, j + 1], best[i + 1, j], best[i, j])
    return best[-1, -1] / max(len(first), len(second))

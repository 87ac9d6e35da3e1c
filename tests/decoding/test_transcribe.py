"""Recordings transcribed by a small model of random weights."""

import dataclasses
import json
import os

import numpy as np
import pytest
import soundfile
import torch
from toy_recogniser import save_aed

from moe_asr.bin.transcribe import transcribe
from moe_asr.config import run_command
from moe_asr.data.manifests import Utterance, write_manifest
from moe_asr.data.recordings import read_levels
from moe_asr.decoding.batch_decoder import BatchDecoder
from moe_asr.decoding.run import DecodeConfig, decode
from moe_asr.decoding.transcribe_config import TranscribeConfig
from moe_asr.errors import UserError
from moe_asr.experts import ExpertSpec, RouterSpec
from moe_asr.methods.adapt import adapt
from moe_asr.methods.adaptation import AdaptationConfig
from moe_asr.models.folder import load_model

RATE, ACCENTS = 16000, ("north", "south", "west")


def syllables(seconds, pitch):
    time = np.arange(round(seconds * RATE)) / RATE
    buzz = sum(np.sin(2 * np.pi * pitch * k * time + k * k) for k in range(1, 15)) / 4
    return 0.2 * buzz * (0.2 + np.square(np.sin(np.pi * 4 * time)))


def recording(*parts, seed=0):
    """Seconds of speech, or of silence where negative, in a little noise."""
    sound = [
        syllables(p, 90 + 13 * i + 29 * seed) if p > 0 else np.zeros(round(-p * RATE)) for i, p in enumerate(parts)
    ]
    noise = 1e-3 * np.random.default_rng(seed).standard_normal(sum(map(len, sound)))
    return (np.concatenate(sound) + noise).astype(np.float32)


PARTS = {"a": (-1, 1.5, -0.8, 2.5, -0.3, 0.6, -1), "b": (1.2, -0.9, 0.8, -0.7, 2), "c": (-0.8, 0.9, -0.6, 1.7, -2)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, adaptations of it with and without the domain, and recordings."""
    folder = tmp_path_factory.mktemp("transcribe")
    generator = torch.Generator().manual_seed(21)
    save_aed(folder / "model", generator)
    for name, route in (("dom", "given"), ("local", "local")):
        experts = ExpertSpec(("default",), 3, 2, router=RouterSpec(route=route, select="all"))
        domains = ACCENTS if experts.router.needs_domains else ()
        adapted = adapt(
            load_model(folder / "model").model, AdaptationConfig(experts, domains=domains, global_route="label")
        )
        for parameter in adapted.adapter.parameters():
            torch.nn.init.normal_(parameter, std=0.5, generator=generator)
        adapted.save(folder / name)
        if name == "dom":
            adapted.config = dataclasses.replace(adapted.config, global_route="uniform")
            adapted.save(folder / "uniform")
    (folder / "in").mkdir()
    for seed, (name, parts) in enumerate(PARTS.items()):
        soundfile.write(folder / f"in/{name}.wav", recording(*parts, seed=seed), RATE, subtype="FLOAT")
    return folder


@pytest.fixture
def run(folder, capsys):
    def run(*words, model="model", **options):
        options = {"device": "cpu", "max_seconds": 20, **options}
        argv = ["--model", f"{folder}/{model}", *(f"--{k}={v}" for k, v in options.items()), *map(str, words)]
        try:
            run_command(TranscribeConfig, transcribe, argv)
            code = 0
        except SystemExit as stop:
            code = stop.code
        return (code, *capsys.readouterr())

    return run


def read(out):
    return [json.loads(line) for line in out.splitlines()]


def texts(out):
    return {entry["file"].rsplit("/", 1)[-1]: [p["text"] for p in entry["pieces"]] for entry in read(out)}


def test_texts_are_those_of_a_decode_of_the_pieces(folder, run, tmp_path):
    code, out, err = run(f"{folder}/in", format="json")
    assert code == 0
    found = read(out)
    assert [len(entry["pieces"]) for entry in found] == [2, 3, 2]
    expected, utterances = [], []
    for name, entry in zip("abc", found):
        sound, _ = soundfile.read(folder / f"in/{name}.wav", dtype="float32")
        assert entry["duration"] == round(len(sound) / RATE, 3) and entry["model"] == f"{folder}/model"
        assert entry["text"] == " ".join(p["text"] for p in entry["pieces"] if p["text"])
        for number, piece in enumerate(entry["pieces"]):
            path = tmp_path / f"{name}{number}.wav"
            part = sound[round(piece["start"] * RATE) : round(piece["end"] * RATE)]
            soundfile.write(path, part, RATE, subtype="FLOAT")
            utterances.append(Utterance(path.name, str(path), len(part), RATE, "x"))
            expected.append(piece)
    write_manifest(tmp_path / "m.jsonl", utterances)
    decode(DecodeConfig(f"{folder}/model", f"{tmp_path}/m.jsonl", f"{tmp_path}/out", device="cpu", max_duration=9))
    lines = [json.loads(line) for line in (tmp_path / "out/hyps.jsonl").read_text().splitlines()]
    assert len({line["hyp"] for line in lines}) > 4
    for piece, line in zip(expected, lines, strict=True):
        assert piece["text"] == line["hyp"]
        assert {k: v for k, v in piece.items() if k in ("truncated", "looping")} == {
            k: v for k, v in line.items() if k in ("truncated", "looping")
        }
    times = [(p["start"], p["end"]) for p in found[0]["pieces"]]
    assert np.abs(np.array(times) - [(0.8, 2.7), (3.1, 6.9)]).max() < 0.1
    assert "3 files, 7 pieces, 0.3 minutes" in err and "times faster than real time" in err


@pytest.mark.parametrize("options", [{"max_duration": 21}, {"max_duration": 4, "max_seconds": 4}])
def test_batches_change_nothing(folder, run, monkeypatch, options):
    sizes = []
    call = BatchDecoder.__call__
    monkeypatch.setattr(BatchDecoder, "__call__", lambda *a: sizes.append(len(a[1])) or call(*a))
    _, together, _ = run(f"{folder}/in", format="json", max_duration=200)
    assert sizes == [7], "pieces of all files in one batch"
    del sizes[:]
    _, small, _ = run(f"{folder}/in", format="json", **options)
    assert small == together and len(sizes) > 1
    alone = [run(f"{folder}/in/{name}.wav", format="json")[1] for name in "abc"]
    assert "".join(alone) == together


@pytest.mark.parametrize("suffix, rate", [("flac", 16000), ("ogg", 16000), ("mp3", 44100), ("wav", 8000)])
def test_any_format_rate_and_number_of_channels(folder, run, tmp_path, suffix, rate):
    import soxr

    sound = soxr.resample(recording(*PARTS["a"]), RATE, rate)
    soundfile.write(tmp_path / f"a.{suffix}", np.stack([sound, 0.5 * sound], 1), rate)
    code, out, _ = run(tmp_path / f"a.{suffix}", format="json")
    (entry,) = read(out)
    times = [(p["start"], p["end"]) for p in entry["pieces"]]
    assert code == 0 and np.abs(np.array(times) - [(0.8, 2.7), (3.1, 6.9)]).max() < 0.15
    assert all(p["text"] for p in entry["pieces"])


def test_what_is_printed(folder, run):
    _, out, _ = run(f"{folder}/in", format="json")
    pieces = texts(out)
    code, out, err = run(f"{folder}/in/a.wav")
    assert (code, out.splitlines()) == (0, pieces["a.wav"]) and "real time" in err
    _, out, _ = run(f"{folder}/in")
    assert out.splitlines() == [f"{folder}/in/{n}: {text}" for n, lines in pieces.items() for text in lines if text]
    code, out, _ = run(f"{folder}/in/a.wav", format="srt")
    assert code == 0 and out.startswith("1\n00:00:00,8") and pieces["a.wav"][0] in out.replace("\n", " ")
    code, _, err = run(f"{folder}/in", format="srt")
    assert code == 1 and "subtitles of 3 files need --out_dir" in err


def test_a_bad_file_does_not_stop_the_others(folder, run, tmp_path, monkeypatch):
    paths = [tmp_path / name for name in ("0.wav", "1.wav", "2.wav", "3.wav", "4.wav")]
    paths[0].write_text("no audio at all, whatever its name says")
    paths[1].touch()
    soundfile.write(paths[2], np.zeros(0, np.float32), RATE)
    soundfile.write(paths[3], recording(*PARTS["a"]), RATE)
    data = paths[3].read_bytes()
    paths[3].write_bytes(data[: len(data) // 2])
    soundfile.write(paths[4], recording(*PARTS["b"]), RATE)
    code, out, err = run(tmp_path, out_dir=f"{tmp_path}/out", format="text,json")
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 1 and out == "" and len(lines) == 5
    for line, path, why in zip(lines, paths, ("cannot be read as audio", "empty", "no samples", "breaks off: ")):
        assert str(path) in line and why in line
    assert "4 of 5 files could not be read or not to their ends" in lines[4]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["3.json", "3.txt", "4.json", "4.txt"]
    half, whole = (json.loads((tmp_path / f"out/{n}.json").read_text()) for n in (3, 4))
    assert half["problem"].startswith("breaks off: ") and half["duration"] == pytest.approx(3.85, abs=0.01)
    assert len(half["pieces"]) == 2 and "problem" not in whole and len(whole["pieces"]) == 3


def test_an_error_of_the_model_is_no_error_of_a_file(folder, run, monkeypatch):
    def fails(*_):
        raise UserError("the model does not want to")

    monkeypatch.setattr("moe_asr.decoding.transcribe._AHEAD", 0)
    monkeypatch.setattr(BatchDecoder, "__call__", fails)
    code, out, err = run(f"{folder}/in")
    assert (code, out, err) == (1, "", "error: the model does not want to\n")


def test_a_file_that_changes_meanwhile_has_no_transcript(folder, run, tmp_path, monkeypatch):
    """The pieces of its first half are computed, but it is not said that they are all."""
    for name in "ab":
        soundfile.write(tmp_path / f"{name}.wav", recording(*PARTS[name]), RATE)

    def cuts(path):
        found = read_levels(path)
        if path.name == "a.wav":
            path.write_bytes(path.read_bytes()[: 44 + 2 * 5 * RATE])
        return found

    monkeypatch.setattr("moe_asr.decoding.transcribe.read_levels", cuts)
    code, _, err = run(tmp_path, out_dir=tmp_path / "out")
    assert code == 1 and "a.wav: cannot be read: it has changed" in err and "1 of 2 files could not be read" in err
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["b.txt"]


def test_where_nobody_speaks_nothing_is_computed(folder, run, tmp_path, monkeypatch):
    monkeypatch.setattr(BatchDecoder, "__call__", None)
    soundfile.write(tmp_path / "silent.wav", np.zeros(3 * RATE), RATE)
    soundfile.write(tmp_path / "noise.wav", recording(-40) * 100, RATE)
    soundfile.write(tmp_path / "tiny.wav", recording(0.05), RATE)
    code, out, err = run(tmp_path, format="json")
    assert code == 0 and [entry["text"] for entry in read(out)] == [""] * 3
    assert "3 files, 0 pieces" in err


def test_transcripts_that_are_there_are_left_alone(folder, run, tmp_path):
    out = tmp_path / "out"
    run(f"{folder}/in/a.wav", out_dir=out)
    (out / "a.txt").write_text("corrected by hand\n")
    code, _, err = run(f"{folder}/in", out_dir=out)
    assert code == 0 and f"{out}: transcripts of 1 of 3 files are there already; --overwrite true" in err
    assert (out / "a.txt").read_text() == "corrected by hand\n" and (out / "c.txt").read_text()
    code, _, err = run(f"{folder}/in", out_dir=out)
    assert code == 0 and "all transcripts are there already" in err and "real time" not in err
    run(f"{folder}/in", out_dir=out, format="text,srt")
    assert (out / "a.txt").read_text() == "corrected by hand\n" and (out / "a.srt").stat().st_size
    code, _, _ = run(f"{folder}/in", out_dir=out, overwrite="true")
    assert code == 0 and (out / "a.txt").read_text() != "corrected by hand\n"


def test_files_of_one_name_and_folders_in_folders(folder, run, tmp_path):
    (tmp_path / "in/deep").mkdir(parents=True)
    for name in ("x.wav", "x.flac", "deep/x.wav"):
        soundfile.write(tmp_path / "in" / name, recording(0.5, -1), RATE)
    run(tmp_path / "in", out_dir=tmp_path / "out")
    assert sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.txt")) == [
        "deep/x.txt", "x.flac.txt", "x.wav.txt",
    ]  # fmt: skip


def test_names_that_are_no_text(folder, run, tmp_path):
    path = os.path.join(os.fsencode(tmp_path), b"a\xff.wav")
    (tmp_path / "a.wav").write_bytes((folder / "in/a.wav").read_bytes())
    try:
        os.rename(tmp_path / "a.wav", path)
    except OSError:
        pytest.skip("this file system allows no such name")
    code, out, _ = run(tmp_path, format="json")
    assert code == 0 and read(out)[0]["file"] == f"{tmp_path}/a\ufffd.wav"
    code, _, _ = run(tmp_path, format="json", out_dir=tmp_path / "out")
    assert code == 0 and os.listdir(os.fsencode(tmp_path / "out")) == [b"a\xff.json"]


def test_interrupted_is_not_lost(folder, run, tmp_path, monkeypatch):
    """Small batches: the first file is finished when it is stopped, and only the rest is done afterwards."""
    whole = tmp_path / "whole"
    options = {"max_duration": 4, "max_seconds": 4, "format": "text,json"}
    run(f"{folder}/in", out_dir=whole, **options)
    monkeypatch.setattr("moe_asr.decoding.transcribe._AHEAD", 0)
    call, seen = BatchDecoder.__call__, []

    def interrupted(*args):
        seen.append(1)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return call(*args)

    monkeypatch.setattr(BatchDecoder, "__call__", interrupted)
    code, _, err = run(f"{folder}/in", out_dir=tmp_path / "out", **options)
    assert code == 130 and "interrupted" in err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.json", "a.txt"]
    monkeypatch.setattr(BatchDecoder, "__call__", call)
    code, _, err = run(f"{folder}/in", out_dir=tmp_path / "out", **options)
    assert code == 0 and "2 files" in err
    for path in whole.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_an_accent_is_told_to_experts_that_ask_for_it(folder, run, tmp_path):
    def heard(**options):
        code, out, err = run(f"{folder}/in", format="json", **options)
        assert code == 0, err
        return texts(out)

    told = {accent: heard(adaptation=f"{folder}/dom", accent=accent) for accent in ACCENTS}
    assert told["north"] != told["south"] != told["west"]
    assert heard(adaptation=f"{folder}/uniform", accent="south") == told["south"]
    assert heard(adaptation=f"{folder}/uniform") not in told.values()
    assert heard(adaptation=f"{folder}/local") != heard()
    # as a decode of the whole file with that label, where the file is one piece
    soundfile.write(tmp_path / "one.wav", recording(2.0), RATE, subtype="FLOAT")
    utterance = Utterance("one", f"{tmp_path}/one.wav", 2 * RATE, RATE, "x", accent="south")
    write_manifest(tmp_path / "m.jsonl", [utterance])
    model, adaptation = f"{folder}/model", f"{folder}/dom"
    decode(DecodeConfig(model, f"{tmp_path}/m.jsonl", f"{tmp_path}/out", adaptation, device="cpu"))
    hyp = json.loads((tmp_path / "out/hyps.jsonl").read_text())["hyp"]
    _, out, _ = run(tmp_path / "one.wav", adaptation=adaptation, accent="south")
    assert out.splitlines()[-1] == hyp != ""


def test_the_language_is_told_to_models_that_know_several(folder, run, tmp_path):
    save_aed(folder / "several", torch.Generator().manual_seed(21), languages=("de", "zh"))
    told = {}
    for language in ("de", "zh-CN"):
        code, out, _ = run(f"{folder}/in", model="several", format="json", language=language)
        assert code == 0 and [entry["language"] for entry in read(out)] == [language] * 3
        told[language] = texts(out)
    assert told["de"] != told["zh-CN"]
    soundfile.write(tmp_path / "one.wav", recording(2.0), RATE, subtype="FLOAT")
    write_manifest(tmp_path / "m.jsonl", [Utterance("one", f"{tmp_path}/one.wav", 2 * RATE, RATE, "x", language="zh")])
    decode(DecodeConfig(f"{folder}/several", f"{tmp_path}/m.jsonl", f"{tmp_path}/out", device="cpu"))
    hyp = json.loads((tmp_path / "out/hyps.jsonl").read_text())["hyp"]
    assert run(tmp_path / "one.wav", model="several", language="zh-CN")[1].splitlines()[-1] == hyp != ""
    code, _, err = run(f"{folder}/in", model="several", language="fa")
    assert (code, err) == (1, "error: language fa is none that the model knows, which are de, zh\n")


def test_a_language_that_is_not_told_is_detected_for_each_piece(folder, run, tmp_path):
    save_aed(folder / "several", torch.Generator().manual_seed(21), languages=("de", "zh"))
    options = dict(model="several", format="json")
    told = {code: read(run(f"{folder}/in", language=code, **options)[1]) for code in ("de", "zh")}
    code, out, err = run(f"{folder}/in", **options)
    assert code == 0, err
    found = [piece for entry in read(out) for piece in entry["pieces"]]
    for number, piece in enumerate(found):
        assert 0.5 <= piece["probability"] <= 1
        expected = [piece for entry in told[piece["detected"]] for piece in entry["pieces"]][number]
        assert piece["text"] == expected["text"]
    assert "language" not in read(out)[0] and run(f"{folder}/in", language="detect", **options)[1] == out


def test_experts_of_languages_are_told_or_go_by_what_the_model_hears(folder, run, tmp_path):
    save_aed(folder / "two", torch.Generator().manual_seed(21), languages=("de", "zh"))
    experts = ExpertSpec(("default",), 2, 2, router=RouterSpec(route="given", select="all"))
    config = AdaptationConfig(experts, domains=("de", "zh"), global_route="label", domain_key="language")
    adapted = adapt(load_model(folder / "two").model, config)
    for parameter in adapted.adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(3))
    adapted.save(tmp_path / "experts")
    soundfile.write(tmp_path / "one.wav", recording(2.0), RATE, subtype="FLOAT")
    write_manifest(tmp_path / "m.jsonl", [Utterance("one", f"{tmp_path}/one.wav", 2 * RATE, RATE, "x", language="de")])
    decoding = DecodeConfig(f"{folder}/two", f"{tmp_path}/m.jsonl", "", f"{tmp_path}/experts", device="cpu")
    for number, (there, here) in enumerate(
        (({}, {"language": "de"}), ({"language": "detect", "global_route": "model"}, {}))
    ):
        decode(dataclasses.replace(decoding, out_dir=f"{tmp_path}/{number}", **there))
        line = json.loads((tmp_path / f"{number}/hyps.jsonl").read_text())
        code, out, err = run(tmp_path / "one.wav", model="two", format="json", adaptation=tmp_path / "experts", **here)
        assert code == 0, err
        (piece,) = json.loads(out.splitlines()[-1])["pieces"]
        assert piece["text"] == line["hyp"] != "" and piece.get("detected") == line.get("detected")


@pytest.mark.parametrize("message, options", [
    ("no such file or folder: .*nothing.wav", {"word": "nothing.wav"}),
    ("format 'txt' is none of text, json, srt", {"format": "txt"}),
    ("several formats need --out_dir", {"format": "text,srt"}),
    ("accent is for an adaptation", {"accent": "north"}),
    ("accent is for an adaptation", {"accent": "north", "adaptation": "local"}),
    ("accent east is none that .*dom knows, which are north, south, west", {"accent": "east", "adaptation": "dom"}),
    ("dom must be told the accent of what it hears: give --accent, one of north", {"adaptation": "dom"}),
    ("no adaptation in", {"adaptation": "nowhere"}),
    ("no model folder at", {"model": "nowhere"}),
    ("File exists: .*a.wav", {"out_dir": "in/a.wav"}),
    ("max_seconds must be at least 1, not 0.5", {"max_seconds": 0.5}),
    ("max_duration 10 s is shorter than pieces of 20 s", {"max_duration": 10}),
    ("min_silence must not be negative", {"segments.min_silence": -1}),
    ("this model has no search|lang folder|k2", {"search.kind": "lattice", "search.lang": "nowhere"}),
])  # fmt: skip
def test_bad_input_is_refused_at_once_in_one_line(folder, run, monkeypatch, message, options):
    monkeypatch.setattr(BatchDecoder, "__call__", None)
    for name in options.keys() & {"adaptation", "out_dir"}:
        options = {**options, name: f"{folder}/{options[name]}"}
    word = options.get("word", "a.wav")
    code, out, err = run(f"{folder}/in/{word}", **{k: v for k, v in options.items() if k != "word"})
    assert code in (1, 2) and out == ""
    assert len(err.splitlines()) == 1 and err.startswith("error: ")
    import re

    assert re.search(message, err), err


def test_nothing_named(run):
    code, out, err = run()
    assert code == 2 and "nothing to transcribe" in err and len(err.splitlines()) == 1

from pathlib import Path

import numpy as np
import pytest
import soundfile

from moe_asr.data.audio import load_audio, resample
from moe_asr.data.manifests import Utterance
from moe_asr.errors import UserError


def tone(frequency, seconds, rate):
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def peak_frequency(samples, rate):
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return np.argmax(spectrum) * rate / len(samples)


def utterance(path, **keywords):
    info = soundfile.info(path)
    return Utterance("u", str(path), info.frames, info.samplerate, "text", **keywords)


@pytest.mark.parametrize("extension, tolerance", [("wav", 1e-4), ("flac", 1e-4), ("ogg", 0.1), ("mp3", 0.1)])
def test_reads_formats(tmp_path, extension, tolerance):
    soundfile.write(tmp_path / f"a.{extension}", tone(440, 1.0, 16000), 16000)
    samples = load_audio(utterance(tmp_path / f"a.{extension}"), 16000)
    assert samples.dtype == np.float32 and samples.shape == (16000,)
    assert np.abs(samples[2000:-2000] - tone(440, 1.0, 16000)[2000:-2000]).max() < tolerance


def test_part_of_a_recording(make_audio):
    path = make_audio(seconds=2.0)
    whole = load_audio(utterance(path), 16000)
    part = load_audio(utterance(path, start=0.5, duration=0.75), 16000)
    assert np.array_equal(part, whole[8000:20000])
    assert np.array_equal(load_audio(utterance(path, start=0.5), 16000), whole[8000:])


@pytest.mark.parametrize("rate, speed", [(16000, 0.9), (16000, 1.1), (8000, 1.0), (44100, 1.0), (8000, 1.1)])
def test_rate_and_speed(tmp_path, rate, speed):
    soundfile.write(tmp_path / "a.wav", tone(1000, 2.0, rate), rate)
    samples = load_audio(utterance(tmp_path / "a.wav"), 16000, speed)
    assert abs(len(samples) - 2.0 * 16000 / speed) <= 1
    assert peak_frequency(samples, 16000) == pytest.approx(1000 * speed, abs=2)
    inner = samples[4000:-4000]
    reference = tone(1000 * speed, 2.0 / speed, 16000)[4000 : 4000 + len(inner)]
    assert np.abs(inner - reference).max() < 2e-3


def test_no_aliases():
    assert np.abs(resample(tone(7000, 1.0, 16000), 16000, 8000)[500:-500]).max() < 1e-3


def cut(path):
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda path: Path(path).unlink(), "no such file"),
        (lambda path: Path(path).write_bytes(b""), "the file is empty"),
        (lambda path: Path(path).write_text("text " * 100), "Format not recognised"),
        (cut, "79[0-9][0-9] samples from sample 0 on, where the manifest has 16000"),
        (lambda path: soundfile.write(path, np.zeros((16000, 2)), 16000), "2 channels at 16000 Hz, not 1"),
        (lambda path: soundfile.write(path, np.zeros(16000), 8000), "1 channels at 8000 Hz, not 1 at 16000"),
    ],
)
def test_changed_files_are_named(make_audio, damage, message):
    path = make_audio()
    known = utterance(path)
    damage(path)
    with pytest.raises(UserError, match=f"cannot read utterance u from {path}: {message}.*prepare the data") as caught:
        load_audio(known, 16000)
    assert "\n" not in str(caught.value)

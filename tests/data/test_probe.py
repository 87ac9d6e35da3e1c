import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from moe_asr.data.probe import AudioFacts, probe

FORMATS = [("wav", "PCM_16"), ("wav", "FLOAT"), ("flac", "PCM_16"), ("ogg", "OPUS"), ("ogg", "VORBIS"), ("mp3", None)]


@pytest.mark.parametrize("extension, subtype", FORMATS)
@pytest.mark.parametrize("seconds", [0.5, 9.0])
def test_sound_files(make_audio, extension, subtype, seconds):
    facts = probe(make_audio(f"a.{extension}", seconds=seconds, subtype=subtype))
    assert len(facts.crc32) == 8 and facts == AudioFacts(round(seconds * 16000), 16000, crc32=facts.crc32)


@pytest.mark.parametrize("extension, subtype", [f for f in FORMATS if f[0] != "mp3"])
@pytest.mark.parametrize("kept", [0.999, 0.5, 0.2])
def test_truncated_files(make_audio, extension, subtype, kept):
    path = Path(make_audio(f"a.{extension}", seconds=9.0, subtype=subtype))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    assert probe(str(path)).problem in ("truncated audio", "unreadable audio")


def test_truncated_wav_says_how_much_is_there(make_audio):
    path = Path(make_audio(seconds=1.0))
    path.write_bytes(path.read_bytes()[: 44 + 16000])
    assert probe(str(path)) == AudioFacts(problem="truncated audio", detail="16000 of 32000 bytes of samples")


def test_truncated_sphere_says_how_much_is_there(make_audio):
    path = Path(make_audio("a.sph", seconds=1.0, format="NIST", subtype="PCM_16"))
    assert (probe(str(path)).num_samples, probe(str(path)).problem) == (16000, "")
    path.write_bytes(path.read_bytes()[: 1024 + 16000])
    assert probe(str(path)) == AudioFacts(problem="truncated audio", detail="16000 of 32000 bytes of samples")


@pytest.mark.parametrize("header", ["NIST_1A\n", "NIST_1A\n   1024\nsample_count -i many\nend_head\n", "NIST\xff"])
def test_a_sphere_header_that_is_none(tmp_path, header):
    (tmp_path / "a.sph").write_bytes(header.encode("latin-1").ljust(3000, b"\0"))
    assert probe(str(tmp_path / "a.sph")).problem in ("unreadable audio", "silent", "no samples")


def test_wav_without_samples_after_the_header(make_audio):
    path = Path(make_audio())
    path.write_bytes(path.read_bytes()[:36])
    assert probe(str(path)).problem == "truncated audio"


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF])
def test_wav_written_to_a_pipe_is_sound(make_audio, size):
    path = Path(make_audio(seconds=0.5))
    data = bytearray(path.read_bytes())
    place = data.index(b"data") + 4
    data[place : place + 4] = struct.pack("<I", size)
    path.write_bytes(data)
    assert probe(str(path)).problem in ("", "no samples") and "truncated" not in probe(str(path)).problem


def test_wav_with_other_chunks(make_audio):
    path = Path(make_audio(seconds=0.5))
    data = path.read_bytes()
    extra = b"LIST" + struct.pack("<I", 5) + b"hello\0"  # chunks of odd length are padded
    path.write_bytes(data[:12] + extra + data[12:])
    facts = probe(str(path))
    assert (facts.num_samples, facts.sample_rate, facts.problem) == (8000, 16000, "")


@pytest.mark.parametrize(
    "content, problem, detail",
    [
        (None, "no such audio file", ""),
        (b"", "unreadable audio", "the file is empty"),
        (b"These are words.\n" * 50, "unreadable audio", "Format not recognised"),
        (b"RIFF", "unreadable audio", ""),
        (b"OggS", "truncated audio", "the last Ogg page is cut"),
    ],
)
def test_no_audio(tmp_path, content, problem, detail):
    if content is not None:
        (tmp_path / "a.wav").write_bytes(content)
    facts = probe(str(tmp_path / "a.wav"))
    assert facts.problem == problem and detail in facts.detail


@pytest.mark.parametrize("place", [0, 100, 70_000, -1])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(tmp_path, place, value):
    samples = np.random.default_rng(0).normal(0, 0.1, 100_000).astype(np.float32)
    samples[place] = value
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    assert probe(str(tmp_path / "a.wav")).problem == "audio not finite"


@pytest.mark.parametrize("sample, problem", [(0.0, "silent"), (0.001, ""), (-0.001, "")])
def test_silence_is_zeros_only(tmp_path, sample, problem):
    samples = np.zeros(100_000)
    samples[-1] = sample
    soundfile.write(tmp_path / "a.wav", samples, 16000)
    assert probe(str(tmp_path / "a.wav")).problem == problem


def test_stereo_and_empty(tmp_path):
    soundfile.write(tmp_path / "stereo.wav", np.ones((1000, 2)) * 0.1, 16000)
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    assert probe(str(tmp_path / "stereo.wav")) == AudioFacts(problem="not mono", detail="2 channels")
    assert probe(str(tmp_path / "empty.wav")).problem == "no samples"

from pathlib import Path

import numpy as np
import pytest
import soundfile

from moe_asr.data.audio import resample
from moe_asr.data.recordings import declared_seconds, find_recordings, read_levels, read_pieces
from moe_asr.data.segments import frame_samples, levels
from moe_asr.errors import UserError

FORMATS = [("wav", "PCM_16"), ("flac", "PCM_16"), ("ogg", "VORBIS"), ("opus", "OPUS"), ("mp3", None)]


def write(path, samples, rate, subtype=None):
    format = {"opus": "OGG"}.get(path.suffix[1:])
    soundfile.write(path, samples, rate, subtype=subtype, format=format)
    return path


def sound(seconds, rate, channels=1, seed=0):
    shape = (round(seconds * rate), channels)
    return np.random.default_rng(seed).normal(0, 0.1, shape).astype(np.float32)


@pytest.mark.parametrize("suffix, subtype", FORMATS)
@pytest.mark.parametrize("rate, channels", [(16000, 1), (48000, 2), (8000, 2)])
def test_pieces_are_what_a_reader_of_the_whole_file_cuts_out(tmp_path, suffix, subtype, rate, channels):
    path = write(tmp_path / f"a.{suffix}", sound(23.3, rate, channels), rate, subtype)
    whole, rate = soundfile.read(path, dtype="float32", always_2d=True)
    mono, W = whole.mean(1), frame_samples(rate)
    recording = read_levels(path)
    assert recording.problem == "" and recording.seconds == len(mono) / rate == declared_seconds(path)
    np.testing.assert_allclose(recording.levels_T, levels(mono, rate), atol=1e-3)
    last = len(recording.levels_T)
    spans = [(0, 3), (3, 601), (700, 701), (last - 400, last)]
    pieces = list(read_pieces(recording, spans, 16000))
    for (start, end), piece in zip(spans, pieces):
        expected = resample(mono[start * W : end * W], rate, 16000)
        assert piece.dtype == np.float32 and recording.time(end) - recording.time(start) == pytest.approx(
            len(piece) / 16000, abs=1e-3
        )
        np.testing.assert_allclose(piece, expected, atol=1e-6)


def test_what_is_found(tmp_path, monkeypatch):
    for name in ("b/c/x.FLAC", "b/a.wav", "b/notes.txt", "b/.hidden.wav", "z.dat"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_recordings(["z.dat", "b", "b/a.wav", "./z.dat"]) == {
        Path("z.dat"): Path("z.dat"),
        Path("b/a.wav"): Path("a.wav"),
        Path("b/c/x.FLAC"): Path("c/x.FLAC"),
    }
    with pytest.raises(UserError, match="no audio in empty"):
        find_recordings(["b", "empty"])
    with pytest.raises(UserError, match="no such file or folder: y.wav"):
        find_recordings(["z.dat", "y.wav"])


def test_files_that_are_no_audio(tmp_path):
    (tmp_path / "text.wav").write_text("this is no audio at all" * 100)
    (tmp_path / "empty.wav").touch()
    write(tmp_path / "none.wav", np.zeros((0, 1), np.float32), 16000)
    bad = sound(1, 16000)
    bad[77] = np.nan
    write(tmp_path / "nan.wav", bad, 16000, "FLOAT")
    for name, why in (
        ("text", "cannot be read as audio: "), ("empty", "the file is empty"), ("none", "holds no samples"),
        ("nan", "no numbers"), ("gone", "no such file"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=why) as caught:
            read_levels(tmp_path / f"{name}.wav")
        assert str(tmp_path / f"{name}.wav") in str(caught.value) and "\n" not in str(caught.value)
    assert declared_seconds(tmp_path / "text.wav") == 0


@pytest.mark.parametrize("suffix, subtype", [f for f in FORMATS if f[0] != "mp3"])
def test_a_file_that_breaks_off_is_read_as_far_as_it_goes(tmp_path, suffix, subtype):
    path = write(tmp_path / f"a.{suffix}", sound(20, 16000), 16000, subtype)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    recording = read_levels(path)
    assert recording.problem.startswith("breaks off: ") and 5 < recording.seconds < 12
    last = len(recording.levels_T)
    pieces = list(read_pieces(recording, [(0, last // 2), (last // 2, last)], 16000))
    assert sum(map(len, pieces)) == recording.num_samples


def test_a_file_that_changes_meanwhile(tmp_path):
    path = write(tmp_path / "a.wav", sound(5, 16000), 16000)
    recording = read_levels(path)
    write(path, sound(2, 16000), 16000)
    with pytest.raises(UserError, match="a.wav: cannot be read: it has changed"):
        list(read_pieces(recording, [(0, 50), (100, 200)], 16000))


def test_memory_does_not_grow_with_the_recording(tmp_path):
    import tracemalloc

    path = tmp_path / "long.wav"
    with soundfile.SoundFile(path, "w", 8000, 2, "PCM_16") as file:
        for seed in range(20):
            file.write(sound(30, 8000, 2, seed))
    tracemalloc.start()
    recording = read_levels(path)
    spans = [(start, start + 500) for start in range(0, len(recording.levels_T) - 500, 600)]
    total = sum(len(piece) for piece in read_pieces(recording, spans, 16000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == len(spans) * 160000
    assert peak < 10e6 < 8 * 600 * 8000, "less than a fourth of its samples"

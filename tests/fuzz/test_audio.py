"""Audio files with damaged headers and contents: read to the sample, or named as what they are."""

import io

import numpy as np
import pytest
import soundfile
from hostile import REFUSED, attempt, damaged, hostile
from hypothesis import given
from hypothesis import strategies as st

from moe_asr.data.audio import load_audio
from moe_asr.data.manifests import Utterance
from moe_asr.data.probe import probe
from moe_asr.data.recordings import declared_seconds, read_levels, read_pieces

SAMPLES = np.random.default_rng(0).normal(0, 0.1, 2400).astype(np.float32)
SPHERE = (
    "NIST_1A\n   1024\nsample_count -i 2400\nsample_n_bytes -i 2\nchannel_count -i 1\nsample_rate -i 16000\n"
    "sample_byte_format -s2 01\nsample_sig_bits -i 16\nsample_coding -s3 pcm\nend_head\n"
).encode().ljust(1024) + (SAMPLES * 32767).astype("<i2").tobytes()


def encoded(**options):
    buffer = io.BytesIO()
    soundfile.write(buffer, SAMPLES, 16000, **options)
    return buffer.getvalue()


KINDS = {
    "wav": encoded(format="WAV"),
    "float.wav": encoded(format="WAV", subtype="FLOAT"),
    "flac": encoded(format="FLAC"),
    "ogg": encoded(format="OGG", subtype="VORBIS"),
    "opus": encoded(format="OGG", subtype="OPUS"),
    "mp3": encoded(format="MP3"),
    "sph": SPHERE,
}


@st.composite
def recordings(draw, content):
    """Most accidents happen in the header, for the samples themselves may be anything."""
    if draw(st.booleans()):
        head = draw(damaged(content[:120]))
        return head + content[120:]
    return draw(damaged(content))


@pytest.mark.parametrize("kind", KINDS)
def test_undamaged(kind, tmp_path):
    (tmp_path / "a").write_bytes(KINDS[kind])
    facts = probe(str(tmp_path / "a"))
    assert not facts.problem and facts.sample_rate == 16000 and abs(facts.num_samples - 2400) <= 1200


@pytest.mark.parametrize("kind", KINDS)
def test_recording(kind, tmp_path):
    path = tmp_path / "a"

    @hostile
    @given(content=recordings(KINDS[kind]))
    def check(content):
        path.write_bytes(content)
        check_corpus(path)
        check_transcribing(path)

    check()


def check_corpus(path):
    """What preparation accepts training can read; what it does not accept has a reason."""
    facts = attempt(probe, str(path))
    assert facts is not REFUSED
    if facts.problem:
        assert facts.problem.isprintable() and facts.detail.isprintable()
        return
    assert facts.num_samples > 0 and facts.sample_rate > 0 and len(facts.crc32) == 8
    utterance = Utterance("a", str(path), facts.num_samples, facts.sample_rate, "a")
    samples_S = attempt(load_audio, utterance, facts.sample_rate)
    assert samples_S is not REFUSED and len(samples_S) == facts.num_samples and np.isfinite(samples_S).all()


def check_transcribing(path):
    assert declared_seconds(path) >= 0
    recording = attempt(read_levels, path)
    if recording is not REFUSED:
        assert recording.num_samples > 0 and recording.problem.isprintable()
        pieces = [(0, len(recording.levels_T))]
        (samples_S,) = read_pieces(recording, pieces, recording.sample_rate)
        assert len(samples_S) == recording.num_samples and np.isfinite(samples_S).all()

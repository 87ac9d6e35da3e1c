"""N utterances, S samples."""

import math

import numpy as np
import pytest
import torch

from moe_asr.data.features import FeatureConfig, SpecAugmentConfig, log_mel, num_frames, spec_augment
from moe_asr.data.waveform_features import waveform
from moe_asr.errors import UserError


def noise(*lengths):
    """Padded audio whose padding is NaN, so that whatever looks at it shows."""
    generator = torch.Generator().manual_seed(0)
    audio_NS = torch.full((len(lengths), max(lengths)), math.nan)
    for row, length in zip(audio_NS, lengths):
        row[:length] = torch.randn(length, generator=generator) * 0.1 + 0.02
    return audio_NS, torch.tensor(lengths)


@pytest.mark.parametrize("normalise", ["mean_var", "none"])
def test_they_are_those_of_transformers(normalise):
    transformers = pytest.importorskip("transformers")
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=normalise == "mean_var")
    audio_NS, lengths_N = noise(16000, 501)
    rows = [row[:length].numpy() for row, length in zip(audio_NS, lengths_N)]
    rows.append(np.resize(np.float32([3e-4, -3e-4]), 700))  # almost silence, where the 1e-7 counts
    padded_NS = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(row) for row in rows], batch_first=True)
    features_NS1, _ = waveform(padded_NS, torch.tensor([16000, 501, 700]), normalise == "mean_var")
    for features_S1, row in zip(features_NS1, rows):
        (expected_S,) = extractor(row, sampling_rate=16000).input_values
        torch.testing.assert_close(features_S1[: len(row), 0], torch.from_numpy(expected_S), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("normalised", [True, False])
def test_they_do_not_depend_on_batch_mates_or_padding(normalised):
    audio_NS, lengths_N = noise(16000, 5203, 7, 1)
    together_NS1, samples_N = waveform(audio_NS, lengths_N, normalised)
    assert torch.equal(samples_N, lengths_N) and together_NS1.shape == (4, 16000, 1)
    for i, length in enumerate(lengths_N.tolist()):
        alone_1S1, _ = waveform(audio_NS[i : i + 1, :length], lengths_N[i : i + 1], normalised)
        assert torch.equal(together_NS1[i, :length], alone_1S1[0])
        assert (together_NS1[i, length:] == 0).all()


def test_no_audio_has_no_frames():
    features_NS1, samples_N = waveform(torch.zeros(2, 0), torch.tensor([0, 0]), True)
    assert samples_N.tolist() == [0, 0] and features_NS1.shape == (2, 1, 1) and (features_NS1 == 0).all()


class TestConfiguration:
    @pytest.mark.parametrize("normalise", ["mean_var", "none"])
    def test_is_what_decides(self, normalise):
        config = FeatureConfig.waveform(8000, normalise)
        audio_NS, lengths_N = noise(900, 300)
        features_NS1, samples_N = log_mel(audio_NS, lengths_N, config)
        assert torch.equal(features_NS1, waveform(audio_NS, lengths_N, normalise == "mean_var")[0])
        assert torch.equal(samples_N, lengths_N) and torch.equal(num_frames(lengths_N, config), lengths_N)
        assert config.sample_rate == 8000 and config.num_mels == 1

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"num_mels": 80}, "features of kind waveform have num_mels 1, not 80"),
            ({"frame_shift_ms": 10.0}, "features of kind waveform have frame_shift_ms 0.0, not 10.0"),
            ({"low_freq": 20.0}, "features of kind waveform have low_freq 0.0, not 20.0"),
            ({"normalise": "mean"}, "features of kind waveform have normalise mean_var or none, not mean"),
            ({"pad_seconds": 30.0}, "are for features of kind whisper, not waveform"),
            ({"sample_rate": 0}, "sample_rate must be above 0, not 0"),
        ],
    )
    def test_of_other_kinds_is_refused(self, change, message):
        fixed = {"num_mels": 1, "frame_length_ms": 0.0, "frame_shift_ms": 0.0, "low_freq": 0.0, "normalise": "none"}
        assert FeatureConfig("waveform", **fixed) == FeatureConfig.waveform(normalise="none")
        with pytest.raises(UserError, match=message):
            FeatureConfig("waveform", **{**fixed, **change})


def test_they_are_not_augmented_by_masks():
    with pytest.raises(UserError, match="features of kind waveform have none: leave augment out"):
        spec_augment(torch.ones(1, 900, 1), torch.tensor([900]), SpecAugmentConfig(), torch.Generator())

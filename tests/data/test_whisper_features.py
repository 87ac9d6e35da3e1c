"""N utterances, S samples, T frames, F mel bins."""

import math

import pytest
import torch

from moe_asr.data.features import FeatureConfig, log_mel, num_frames
from moe_asr.data.whisper_features import whisper_frames, whisper_log_mel
from moe_asr.errors import UserError


def noise(*lengths, seed=0):
    """Padded audio whose padding is NaN, so that whatever looks at it shows."""
    generator = torch.Generator().manual_seed(seed)
    audio_NS = torch.full((len(lengths), max(lengths)), math.nan)
    for row, length in zip(audio_NS, lengths):
        row[:length] = torch.randn(length, generator=generator) * torch.linspace(1e-4, 0.3, length)
    return audio_NS, torch.tensor(lengths)


def published(audio_S, num_mels=80):
    """Features of the 30-s window by `transformers`."""
    extractor = pytest.importorskip("transformers").WhisperFeatureExtractor(feature_size=num_mels)
    features = extractor(audio_S.numpy(), sampling_rate=16000, return_attention_mask=True)
    return torch.from_numpy(features.input_features[0]).T, int(features.attention_mask.sum())


@pytest.mark.parametrize("num_mels, samples", [(80, 1), (80, 199), (128, 32001), (80, 479850), (80, 480000)])
def test_padded_to_30_s_they_are_those_of_transformers(num_mels, samples):
    audio_NS, lengths_N = noise(samples)
    features_NTF, frames_N = whisper_log_mel(audio_NS, lengths_N, num_mels, pad=480000)
    assert frames_N.tolist() == [3000]
    torch.testing.assert_close(features_NTF[0], published(audio_NS[0], num_mels)[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("samples", [1, 199, 200, 201, 1600, 32001, 479800])
def test_without_padding_they_are_the_real_frames_of_transformers(samples):
    audio_NS, lengths_N = noise(samples)
    audio_NS[0, -1] = 0.9  # a click, whose energy is highest in a frame beyond the last
    features_NTF, frames_N = whisper_log_mel(audio_NS, lengths_N, 80)
    window_TF, real = published(audio_NS[0])
    assert frames_N.tolist() == [real]
    torch.testing.assert_close(features_NTF[0], window_TF[:real], atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", [{}, {"tail": 3200}, {"pad": 80000}])
def test_they_do_not_depend_on_batch_mates_or_padding(options):
    audio_NS, lengths_N = noise(16000, 5203, 9999, 400, 7)
    together_NTF, frames_N = whisper_log_mel(audio_NS, lengths_N, 80, **options)
    for i, length in enumerate(lengths_N.tolist()):
        alone_NTF, frames_1 = whisper_log_mel(audio_NS[i : i + 1, :length], lengths_N[i : i + 1], 80, **options)
        assert frames_1[0] == frames_N[i] == alone_NTF.shape[1]
        assert torch.equal(together_NTF[i, : frames_N[i]], alone_NTF[0])
        assert (together_NTF[i, frames_N[i] :] == 0).all()


def test_a_tail_is_silence_that_counts():
    audio_NS, lengths_N = noise(8000)
    features_NTF, frames_N = whisper_log_mel(audio_NS, lengths_N, 80, tail=4000)
    assert frames_N.tolist() == [75]
    torch.testing.assert_close(features_NTF[0], published(audio_NS[0])[0][:75], atol=1e-5, rtol=0)


def test_number_of_frames():
    lengths_N = torch.tensor([0, 1, 160, 161, 16000])
    assert whisper_frames(lengths_N).tolist() == [0, 1, 1, 2, 100]
    assert whisper_frames(lengths_N, tail=80).tolist() == [1, 1, 2, 2, 101]
    assert whisper_frames(lengths_N, pad=480000).tolist() == [3000] * 5


def test_no_audio_has_no_frames():
    features_NTF, frames_N = whisper_log_mel(torch.zeros(2, 0), torch.tensor([0, 0]), 80)
    assert frames_N.tolist() == [0, 0] and features_NTF.shape == (2, 1, 80) and (features_NTF == 0).all()


def test_autocast_does_not_reach_them():
    audio_NS, lengths_N = noise(8000)
    plain_NTF, _ = whisper_log_mel(audio_NS, lengths_N, 80)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(plain_NTF, whisper_log_mel(audio_NS.double(), lengths_N, 80)[0])


def test_an_utterance_longer_than_the_window_is_refused():
    with pytest.raises(UserError, match="an utterance of 2.0 s is longer than the 1 s that features are padded to"):
        whisper_log_mel(*noise(32000), 80, pad=16000)


class TestConfiguration:
    @pytest.mark.parametrize("seconds", [(0.0, 0.0), (0.25, 0.0), (0.0, 2.0)])
    def test_is_what_decides(self, seconds):
        samples = [round(16000 * one) for one in seconds]
        config = FeatureConfig.whisper(128, *seconds)
        audio_NS, lengths_N = noise(16000, 5203)
        features_NTF, frames_N = log_mel(audio_NS, lengths_N, config)
        expected_NTF, _ = whisper_log_mel(audio_NS, lengths_N, 128, *samples)
        assert torch.equal(features_NTF, expected_NTF)
        assert torch.equal(num_frames(lengths_N, config), frames_N)

    @pytest.mark.parametrize(
        "options, message",
        [
            ({"kind": "whisper"}, "features of kind whisper have low_freq 0.0, not 20.0"),
            ({"kind": "whisper", "low_freq": 0.0}, "features of kind whisper have normalise none, not mean"),
            ({"pad_seconds": 30.0}, "are for features of kind whisper, not log_mel"),
            ({"tail_padding_seconds": -1.0}, "set one of tail_padding_seconds and pad_seconds"),
            ({"tail_padding_seconds": 1.0, "pad_seconds": 30.0}, "set one of tail_padding_seconds and pad_seconds"),
        ],
    )
    def test_of_other_kinds_is_refused(self, options, message):
        with pytest.raises(UserError, match=message):
            FeatureConfig(**options)

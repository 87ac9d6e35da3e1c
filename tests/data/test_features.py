"""N utterances, S samples, T frames, F mel bins."""

import math

import pytest
import torch

from moe_asr.data.features import FeatureConfig, SpecAugmentConfig, log_mel, num_frames, spec_augment
from moe_asr.errors import UserError

KINDS = [FeatureConfig(kind=k, normalise=n) for k in ("log_mel", "fbank") for n in ("mean", "mean_var", "none")]


def noise(*lengths, seed=0):
    """Padded audio whose padding is NaN, so that whatever looks at it shows."""
    generator = torch.Generator().manual_seed(seed)
    audio_NS = torch.full((len(lengths), max(lengths)), math.nan)
    for row, length in zip(audio_NS, lengths):
        row[:length] = torch.randn(length, generator=generator) * 0.1
    return audio_NS, torch.tensor(lengths)


def naive_log_mel(samples, config):
    """One utterance, frame by frame, from the definitions, in float64; slaney scale as in Auditory Toolbox."""

    def to_hertz(mel):
        return mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)

    def to_mel(hertz):
        return hertz * 3 / 200 if hertz < 1000 else 15 + 27 * math.log(hertz / 1000, 6.4)

    low, high = to_mel(config.low_freq), to_mel(config.top_freq)
    edges = [to_hertz(low + (high - low) * i / (config.num_mels + 1)) for i in range(config.num_mels + 2)]
    bins = torch.arange(257, dtype=torch.float64) * 16000 / 512
    k = torch.arange(257, dtype=torch.float64)[:, None]
    n = torch.arange(400, dtype=torch.float64)
    dft = torch.exp(-2j * math.pi * k * n / 512)
    window = 0.5 - 0.5 * torch.cos(2 * math.pi * n / 400)
    rows = []
    for start in range(0, len(samples) - 400 + 1, 160):
        power = (dft @ (samples[start : start + 400].double() * window).to(torch.complex128)).abs() ** 2
        row = []
        for a, b, c in zip(edges, edges[1:], edges[2:]):
            triangle = torch.minimum((bins - a) / (b - a), (c - bins) / (c - b)).clamp(min=0) * 2 / (c - a)
            row.append(math.log(max(1e-10, float(triangle @ power))))
        rows.append(row)
    return torch.tensor(rows)


def test_log_mel_equals_the_definition():
    config = FeatureConfig(normalise="none")
    audio_NS, lengths_N = noise(2000)
    features_NTF, _ = log_mel(audio_NS, lengths_N, config)
    torch.testing.assert_close(features_NTF[0], naive_log_mel(audio_NS[0], config), atol=2e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fbank_equals_lhotse():
    from lhotse.features.kaldi.layers import Wav2LogFilterBank

    with pytest.warns(UserWarning, match="snip_edges"):
        reference = Wav2LogFilterBank(snip_edges=True, low_freq=20.0, high_freq=-400.0)
    audio_NS, lengths_N = noise(16000, 16000)
    config = FeatureConfig(kind="fbank", normalise="none", high_freq=-400.0)
    features_NTF, frames_N = log_mel(audio_NS, lengths_N, config)
    assert frames_N.tolist() == [98, 98]
    torch.testing.assert_close(features_NTF, reference(audio_NS), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("config", KINDS, ids=lambda c: f"{c.kind}-{c.normalise}")
def test_features_do_not_depend_on_batch_mates_or_padding(config):
    audio_NS, lengths_N = noise(16000, 5200, 9999, 400)
    together_NTF, frames_N = log_mel(audio_NS, lengths_N, config)
    assert torch.isfinite(together_NTF).all()
    for i, length in enumerate(lengths_N.tolist()):
        alone_1TF, frames_1 = log_mel(audio_NS[i : i + 1, :length], lengths_N[i : i + 1], config)
        assert frames_1[0] == frames_N[i] == alone_1TF.shape[1]
        torch.testing.assert_close(together_NTF[i, : frames_N[i]], alone_1TF[0], atol=2e-5, rtol=1e-5)
        assert (together_NTF[i, frames_N[i] :] == 0).all()


def test_normalisation_is_over_real_frames():
    audio_NS, lengths_N = noise(16000, 6000)
    raw_NTF, frames_N = log_mel(audio_NS, lengths_N, FeatureConfig(normalise="none"))
    mean_NTF, _ = log_mel(audio_NS, lengths_N, FeatureConfig(normalise="mean"))
    both_NTF, _ = log_mel(audio_NS, lengths_N, FeatureConfig(normalise="mean_var"))
    for i, frames in enumerate(frames_N.tolist()):
        raw_TF = raw_NTF[i, :frames].double()
        centred_TF = raw_TF - raw_TF.mean(0)
        torch.testing.assert_close(mean_NTF[i, :frames].double(), centred_TF, atol=1e-4, rtol=0)
        scaled_TF = centred_TF / raw_TF.std(0, correction=0)
        torch.testing.assert_close(both_NTF[i, :frames].double(), scaled_TF, atol=1e-4, rtol=0)


def test_utterances_shorter_than_a_frame_have_none():
    features_NTF, frames_N = log_mel(*noise(399, 400, 10), FeatureConfig())
    assert frames_N.tolist() == [0, 1, 0] and features_NTF.shape == (3, 1, 80)
    features_NTF, frames_N = log_mel(*noise(100), FeatureConfig())
    assert frames_N.tolist() == [0] and (features_NTF == 0).all()


def test_number_of_frames():
    lengths = [0, 399, 400, 559, 560, 16000]
    expected = [len(range(0, length - 400 + 1, 160)) for length in lengths]
    assert num_frames(torch.tensor(lengths), FeatureConfig()).tolist() == expected


def test_autocast_does_not_reach_the_features():
    audio_NS, lengths_N = noise(8000)
    plain_NTF, _ = log_mel(audio_NS, lengths_N, FeatureConfig())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast_NTF, _ = log_mel(audio_NS, lengths_N, FeatureConfig())
    assert torch.equal(plain_NTF, cast_NTF)


def test_a_scaled_utterance_has_the_same_normalised_features():
    audio_NS, lengths_N = noise(8000)
    loud_NTF, _ = log_mel(audio_NS, lengths_N, FeatureConfig())
    soft_NTF, _ = log_mel(audio_NS / 8, lengths_N, FeatureConfig())
    torch.testing.assert_close(loud_NTF, soft_NTF, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"frame_shift_ms": 0.0}, "frame_shift_ms 0.0 must be positive"),
        ({"high_freq": 9000.0}, "do not fit 0 to 8000.0 Hz"),
        ({"low_freq": 5000.0, "high_freq": 4000.0}, "mel filters from 5000.0 to 4000.0 Hz"),
    ],
)
def test_impossible_configurations_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        FeatureConfig(**change)


def test_too_many_filters_are_refused():
    with pytest.raises(UserError, match="300 mel filters are too narrow"):
        log_mel(*noise(1000), FeatureConfig(num_mels=300))


class TestSpecAugment:
    config = SpecAugmentConfig(time_masks=2, time_mask_frames=20, time_mask_fraction=0.5, mel_masks=1, mel_mask_bins=10)
    lengths_N = torch.tensor([100, 30, 0, 7])

    def augment(self, seed=0, config=None):
        features_NTF = torch.ones(4, 100, 80)
        return spec_augment(features_NTF, self.lengths_N, config or self.config, torch.Generator().manual_seed(seed))

    def test_same_generator_same_masks(self):
        assert torch.equal(self.augment(1), self.augment(1))
        assert not torch.equal(self.augment(1), self.augment(2))

    def test_widths_stay_within_limits_and_reach_them(self):
        config = SpecAugmentConfig(time_masks=1, time_mask_frames=20, time_mask_fraction=0.5, mel_masks=0)
        widest = torch.zeros(4, dtype=torch.long)
        for seed in range(300):
            frames_NT = self.augment(seed, config)[:, :, 0] == 0
            widest = torch.maximum(widest, frames_NT.sum(1))
            for frames_T, length in zip(frames_NT, self.lengths_N):
                assert not frames_T[length:].any()
        assert widest.tolist() == [20, 15, 0, 3]

    def test_each_real_frame_and_bin_may_be_masked(self):
        masked_NTF = sum((self.augment(seed) == 0).int() for seed in range(300))
        assert (masked_NTF[0].amin(1) >= 0).all() and (masked_NTF[0].sum(1) > 0).all()
        assert (masked_NTF[0].sum(0) > 0).all() and (masked_NTF[1, :30].sum(1) > 0).all()

    def test_masks_are_whole_bands(self):
        zero_NTF = self.augment(3) == 0
        rows_NT, columns_NF = zero_NTF.all(2), zero_NTF.all(1)
        assert torch.equal(zero_NTF, rows_NT[:, :, None] | columns_NF[:, None, :])
        assert rows_NT[0].any() and columns_NF[0].any()

    def test_no_masks_change_nothing(self):
        assert (self.augment(0, SpecAugmentConfig(time_masks=0, mel_masks=0)) == 1).all()

"""Features of a padded batch, mostly log-mel energies, and SpecAugment on them.

A frame of one utterance never sees padding or another utterance: frames are cut from real samples only ("snip edges")
and all statistics are taken over real frames, so that features are the same alone and in any batch.

Shape suffixes: N utterances, S samples, T frames, W samples in a frame, K spectrum bins, F mel bins, M masks.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_asr.data.mel_filters import mel_filters
from moe_asr.data.waveform_features import waveform
from moe_asr.data.whisper_features import SAMPLE_RATE, SHIFT, WINDOW, whisper_frames, whisper_log_mel
from moe_asr.errors import UserError

_WHISPER = {
    "sample_rate": SAMPLE_RATE,
    "frame_length_ms": 1000.0 * WINDOW / SAMPLE_RATE,
    "frame_shift_ms": 1000.0 * SHIFT / SAMPLE_RATE,
    "low_freq": 0.0,
    "high_freq": 0.0,
    "normalise": "none",
}
_WAVEFORM = {"num_mels": 1, "frame_length_ms": 0.0, "frame_shift_ms": 0.0, "low_freq": 0.0, "high_freq": 0.0}
_FIXED = {"whisper": _WHISPER, "waveform": _WAVEFORM}


@dataclass(frozen=True)
class FeatureConfig:
    """What the features of a model are; saved with the model.

    Args:
        kind: `log_mel`: Hann window, slaney mel filters of equal area; `fbank`: Kaldi's, which removes the mean of each
            frame, pre-emphasises by 0.97, and uses the povey window and HTK's mel scale; `whisper`: what Whisper was
            trained on (see `whisper_features`), which leaves only the number of mel bins and the silence to choose;
            `waveform`: the samples themselves, each a frame of width 1, for encoders such as HuBERT.
        sample_rate: In Hz; audio of another rate is resampled when it is loaded.
        num_mels: Number of mel bins; 1 for `waveform`.
        frame_length_ms: Window length in milliseconds.
        frame_shift_ms: Hop in milliseconds.
        low_freq: Lower edge of the first filter in Hz.
        high_freq: Upper edge of the last filter in Hz; zero or less counts from half the sample rate.
        normalise: Per utterance and mel bin, over its frames: subtract the `mean`, also divide by the standard
            deviation (`mean_var`), or `none`; of a `waveform` over its samples, `mean_var` or `none`.
        tail_padding_seconds: Silence put behind every utterance (`whisper` only).
        pad_seconds: Silence put behind shorter utterances up to this length; longer ones are refused (`whisper` only).
    """

    kind: Literal["log_mel", "fbank", "whisper", "waveform"] = "log_mel"
    sample_rate: int = 16000
    num_mels: int = 80
    frame_length_ms: float = 25.0
    frame_shift_ms: float = 10.0
    low_freq: float = 20.0
    high_freq: float = 0.0
    normalise: Literal["mean", "mean_var", "none"] = "mean"
    tail_padding_seconds: float = 0.0
    pad_seconds: float = 0.0

    def __post_init__(self):
        if self.sample_rate <= 0:
            raise UserError(f"sample_rate must be above 0, not {self.sample_rate}")
        for name, value in _FIXED.get(self.kind, {}).items():
            if getattr(self, name) != value:
                raise UserError(f"features of kind {self.kind} have {name} {value}, not {getattr(self, name)}")
        if self.kind == "waveform":
            if self.normalise == "mean":
                raise UserError("features of kind waveform have normalise mean_var or none, not mean")
        elif not 0 < self.shift <= self.window:
            raise UserError(f"frame_shift_ms {self.frame_shift_ms} must be positive and within the frame length")
        elif not 0 <= self.low_freq < self.top_freq <= self.sample_rate / 2:
            raise UserError(
                f"mel filters from {self.low_freq} to {self.top_freq} Hz do not fit 0 to {self.sample_rate / 2} Hz"
            )
        if self.tail_padding_seconds < 0 or self.pad_seconds < 0 or (self.tail_padding_seconds and self.pad_seconds):
            raise UserError("set one of tail_padding_seconds and pad_seconds above zero, or none")
        if self.kind != "whisper" and (self.tail_padding_seconds or self.pad_seconds):
            raise UserError(f"tail_padding_seconds and pad_seconds are for features of kind whisper, not {self.kind}")

    @classmethod
    def whisper(cls, num_mels: int = 80, tail_padding_seconds: float = 0.0, pad_seconds: float = 0.0) -> FeatureConfig:
        """The features that Whisper was trained on."""
        silence = {"tail_padding_seconds": tail_padding_seconds, "pad_seconds": pad_seconds}
        return cls("whisper", num_mels=num_mels, **silence, **_WHISPER)

    @classmethod
    def waveform(cls, sample_rate: int = 16000, normalise: Literal["mean_var", "none"] = "mean_var") -> FeatureConfig:
        """The samples themselves."""
        return cls("waveform", sample_rate, normalise=normalise, **_WAVEFORM)

    @property
    def window(self) -> int:
        """Samples in a frame."""
        return int(self.sample_rate * self.frame_length_ms / 1000)

    @property
    def shift(self) -> int:
        """Samples from one frame to the next."""
        return int(self.sample_rate * self.frame_shift_ms / 1000)

    @property
    def fft_size(self) -> int:
        """The power of two that holds a frame."""
        return 1 << (self.window - 1).bit_length()

    @property
    def tail_samples(self) -> int:
        """Samples of silence behind every utterance."""
        return round(self.sample_rate * self.tail_padding_seconds)

    @property
    def pad_samples(self) -> int:
        """Samples that every utterance is padded to; 0 for none."""
        return round(self.sample_rate * self.pad_seconds)

    @property
    def top_freq(self) -> float:
        """Upper edge of the last filter in Hz."""
        return self.high_freq if self.high_freq > 0 else self.sample_rate / 2 + self.high_freq


@dataclass(frozen=True)
class SpecAugmentConfig:
    """Masks of random place and width put on features, after Park et al. 2019 (arXiv:1904.08779).

    Args:
        time_masks: Masks along time; 0 for none.
        time_mask_frames: Widest mask along time, in frames.
        time_mask_fraction: Widest mask along time, as a fraction of the utterance; the lesser limit counts.
        mel_masks: Masks along mel bins; 0 for none.
        mel_mask_bins: Widest mask along mel bins.
    """

    time_masks: int = 2
    time_mask_frames: int = 40
    time_mask_fraction: float = 0.15
    mel_masks: int = 2
    mel_mask_bins: int = 27


def num_frames(num_samples_N: Tensor, config: FeatureConfig) -> Tensor:
    """Frames that fit wholly into so many samples, 1 + floor((S - window) / shift) or 0; or `whisper_frames`.

    The frames of a waveform are its samples.
    """
    if config.kind == "waveform":
        return num_samples_N
    if config.kind == "whisper":
        return whisper_frames(num_samples_N, config.tail_samples, config.pad_samples)
    return ((num_samples_N - config.window).div(config.shift, rounding_mode="floor") + 1).clamp(min=0)


@torch.no_grad()
def log_mel(audio_NS: Tensor, lengths_N: Tensor, config: FeatureConfig) -> tuple[Tensor, Tensor]:
    """Log-mel energies: ln max(floor, sum_k filter[k, f] |DFT(window * frame)[k]|^2), normalised; or of other kinds.

    Args:
        audio_NS: Samples in [-1, 1], padded at the end with anything.
        lengths_N: Samples of each utterance.

    Returns:
        features_NTF in float32, zero beyond each utterance, and the number of frames of each utterance.

    Raises:
        UserError: an utterance is longer than `pad_seconds`.
    """
    if config.kind == "waveform":
        return waveform(audio_NS, lengths_N, config.normalise == "mean_var")
    if config.kind == "whisper":
        return whisper_log_mel(audio_NS, lengths_N, config.num_mels, config.tail_samples, config.pad_samples)
    audio_NS, frames_N = audio_NS.float(), num_frames(lengths_N, config)
    if audio_NS.shape[1] < config.window:
        audio_NS = F.pad(audio_NS, (0, config.window - audio_NS.shape[1]))
    filters_2KF = _doubled_filters(config, audio_NS.device)
    # bf16 products would cost two digits of the spectrum
    with torch.autocast(audio_NS.device.type, enabled=False):
        spectrum_NTK = torch.fft.rfft(_windowed(audio_NS, config))
        # |z|^2 summed inside the filter product: re^2 and im^2 lie side by side, and each filter row stands twice
        squares_NT2K = torch.view_as_real(spectrum_NTK).square_().flatten(-2)
        floor = 1e-10 if config.kind == "log_mel" else torch.finfo(torch.float32).eps
        features_NTF = (squares_NT2K @ filters_2KF).clamp_(min=floor).log_()
    features_NTF = features_NTF[:, : max(1, int(frames_N.max()))]
    return _normalise(features_NTF, frames_N, config.normalise), frames_N


def spec_augment(
    features_NTF: Tensor, lengths_N: Tensor, config: SpecAugmentConfig, generator: torch.Generator
) -> Tensor:
    """Sets random bands of frames and of mel bins to zero, which is the mean of normalised features.

    Widths are uniform from 0 to the limit, and places uniform over the real frames.

    Args:
        features_NTF: Normalised features.
        lengths_N: Frames of each utterance.
        generator: On the CPU, whatever the device of the features, so that a run is repeated exactly anywhere.

    Raises:
        UserError: the features are samples, which have no mel bins.
    """
    num, frames, mels = features_NTF.shape
    if mels == 1:
        raise UserError("augment masks frames and mel bins; features of kind waveform have none: leave augment out")
    lengths_N1 = lengths_N.cpu()[:, None]
    limit_N1 = (lengths_N1 * config.time_mask_fraction).long().clamp(max=config.time_mask_frames)
    masked_NT = _bands(limit_N1, lengths_N1, config.time_masks, frames, generator)
    bins_N1 = torch.full((num, 1), mels)
    masked_NF = _bands(bins_N1.clamp(max=config.mel_mask_bins), bins_N1, config.mel_masks, mels, generator)
    masked_NTF = masked_NT[:, :, None] | masked_NF[:, None, :]
    return features_NTF.masked_fill(masked_NTF.to(features_NTF.device), 0.0)


def _bands(limit_N1: Tensor, size_N1: Tensor, masks: int, total: int, generator: torch.Generator) -> Tensor:
    """True inside `masks` random bands of at most `limit` in [0, size), for each utterance: shape [N, total]."""
    draws_2NM = torch.rand(2, limit_N1.shape[0], masks, generator=generator)
    width_NM = (draws_2NM[0] * (limit_N1 + 1)).long()
    begin_NM = (draws_2NM[1] * (size_N1 - width_NM + 1)).long()
    place = torch.arange(total)
    inside_NMT = (place >= begin_NM[:, :, None]) & (place < (begin_NM + width_NM)[:, :, None])
    return inside_NMT.any(dim=1)


def _windowed(audio_NS: Tensor, config: FeatureConfig) -> Tensor:
    """Frames times window, with zeros up to the size of the FFT: shape [N, T, fft_size]."""
    window_W = _window(config, audio_NS.device)
    frames_NTW = audio_NS.unfold(1, config.window, config.shift)
    if config.kind == "fbank":
        frames_NTW = frames_NTW - frames_NTW.mean(-1, keepdim=True)
        before_NTW = torch.cat([frames_NTW[..., :1], frames_NTW[..., :-1]], dim=-1)
        frames_NTW = frames_NTW - 0.97 * before_NTW
    # written straight into zeros: padding the product, as rfft(n=...) would, copies it and takes half as long again
    padded_NTW = audio_NS.new_zeros(*frames_NTW.shape[:2], config.fft_size)
    torch.mul(frames_NTW, window_W, out=padded_NTW[..., : config.window])
    return padded_NTW


def _normalise(features_NTF: Tensor, frames_N: Tensor, kind: str) -> Tensor:
    """Normalises over the real frames and sets all others to zero."""
    padding_NT1 = (torch.arange(features_NTF.shape[1], device=frames_N.device) >= frames_N[:, None])[:, :, None]
    features_NTF = features_NTF.masked_fill_(padding_NT1, 0.0)
    if kind == "none":
        return features_NTF
    count_N11 = frames_N.clamp(min=1)[:, None, None]
    features_NTF -= features_NTF.sum(1, keepdim=True) / count_N11
    features_NTF = features_NTF.masked_fill_(padding_NT1, 0.0)
    if kind == "mean_var":
        features_NTF /= (features_NTF.square().sum(1, keepdim=True) / count_N11).sqrt().clamp(min=1e-5)
    return features_NTF


@functools.lru_cache(maxsize=8)
def _window(config: FeatureConfig, device: torch.device) -> Tensor:
    if config.kind == "log_mel":
        return torch.hann_window(config.window, periodic=True, device=device)
    return torch.hann_window(config.window, periodic=False, dtype=torch.float64).pow(0.85).float().to(device)


@functools.lru_cache(maxsize=8)
def _doubled_filters(config: FeatureConfig, device: torch.device) -> Tensor:
    """Mel filters, each row twice (for the real and the imaginary part): shape [2K, F]."""
    scale = "slaney" if config.kind == "log_mel" else "htk"
    filters_KF = mel_filters(
        scale, config.num_mels, config.low_freq, config.top_freq, config.fft_size, config.sample_rate, device
    )
    return filters_KF.repeat_interleave(2, dim=0)

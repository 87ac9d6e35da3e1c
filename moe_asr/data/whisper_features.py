"""Whisper's log-mel features (Radford et al. 2022), with or without its padding to 30 s.

Frame t is centred on sample 160 t. The audio is mirrored at its beginning and followed by zeros, as it is in Whisper's
30-s window. So the frames of an utterance without padding are the first ones of that window, and the threshold 80 dB
below the highest energy is the same, since frames of silence cannot raise it. (Only where speech lasts into the last
12.5 ms of the window do they differ, in the last two frames, because the window is mirrored at its end.)

Shape suffixes: N utterances, S samples, T frames, K spectrum bins, F mel bins.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from moe_asr.data.mel_filters import mel_filters
from moe_asr.errors import UserError

SAMPLE_RATE, WINDOW, SHIFT = 16000, 400, 160
_HALF = WINDOW // 2


def whisper_frames(num_samples_N: Tensor, tail: int = 0, pad: int = 0) -> Tensor:
    """Frames whose centre lies in the audio: ceil((S + tail) / 160), or ceil(pad / 160) where `pad` is set."""
    total_N = torch.full_like(num_samples_N, pad) if pad else num_samples_N + tail
    return (total_N + (SHIFT - 1)).div(SHIFT, rounding_mode="floor")


@torch.no_grad()
def whisper_log_mel(
    audio_NS: Tensor, lengths_N: Tensor, num_mels: int, tail: int = 0, pad: int = 0
) -> tuple[Tensor, Tensor]:
    """y = (max(x, max(x) - 8) + 4) / 4 with x = log10 max(1e-10, sum_k filter[k, f] |DFT(window * frame)[k]|^2).

    Args:
        audio_NS: Samples in [-1, 1], padded at the end with anything.
        lengths_N: Samples of each utterance.
        num_mels: F, 80 or 128 in the published models.
        tail: Zeros behind each utterance which count as audio, in samples.
        pad: Length in samples to which all are padded with zeros which count as audio; 0 for none.

    Returns:
        features_NTF in float32, zero beyond each utterance, and the number of frames of each utterance.

    Raises:
        UserError: an utterance is longer than `pad`.
    """
    longest = int(lengths_N.max())
    if pad and longest > pad:
        raise UserError(
            f"an utterance of {longest / SAMPLE_RATE:.1f} s is longer than the {pad / SAMPLE_RATE:g} s that features "
            "are padded to: cut it, or leave it out in data preparation"
        )
    frames_N = whisper_frames(lengths_N, tail, pad)
    features_NTF = audio_NS.new_zeros(len(lengths_N), max(1, int(frames_N.max())), num_mels, dtype=torch.float32)
    # One at a time: an utterance stays in the cache of a CPU, and comes out the same to the bit in any batch.
    # bf16 products would cost two digits of the spectrum.
    with torch.autocast(audio_NS.device.type, enabled=False):
        for features_TF, audio_S, length, frames in zip(features_NTF, audio_NS, lengths_N.tolist(), frames_N.tolist()):
            if frames:
                features_TF[:frames] = _of_one(audio_S[:length].float(), frames, num_mels, pad)
    return features_NTF, frames_N


def _of_one(audio_S: Tensor, frames: int, num_mels: int, pad: int) -> Tensor:
    """features_TF of one utterance, followed by zeros or padded."""
    # two more frames see the last samples and count for the maximum; a padded window drops them, as Whisper does
    extended_S = _extended(audio_S, frames if pad else frames + 2, pad)
    spectrum_TK = torch.fft.rfft(extended_S.unfold(0, WINDOW, SHIFT) * _window(audio_S.device))
    # |z|^2 summed inside the filter product: re^2 and im^2 lie side by side, and each filter row stands twice
    squares_T2K = torch.view_as_real(spectrum_TK).square_().flatten(-2)
    x_TF = (squares_T2K @ _doubled_filters(num_mels, audio_S.device)).clamp_(min=1e-10).log10_()
    return x_TF.clamp_(min=x_TF.max() - 8.0)[:frames].add_(4.0).div_(4.0)


def _extended(audio_S: Tensor, frames: int, pad: int) -> Tensor:
    """What all frames see: half a window mirrored, the samples, and zeros, mirrored again at the end of a `pad`."""
    size = (frames - 1) * SHIFT + WINDOW
    extended_S = audio_S.new_zeros(size)
    extended_S[_HALF : _HALF + len(audio_S)] = audio_S[: size - _HALF]
    extended_S[:_HALF] = extended_S[_HALF + 1 : WINDOW + 1].flip(0)
    if pad:
        end = _HALF + pad
        extended_S[end:] = extended_S[end - 1 - (size - end) : end - 1].flip(0)
    return extended_S


@functools.lru_cache(maxsize=4)
def _window(device: torch.device) -> Tensor:
    return torch.hann_window(WINDOW, periodic=True, device=device)


@functools.lru_cache(maxsize=4)
def _doubled_filters(num_mels: int, device: torch.device) -> Tensor:
    """Mel filters, each row twice (for the real and the imaginary part): shape [2K, F]."""
    filters_KF = mel_filters("slaney", num_mels, 0.0, SAMPLE_RATE / 2, WINDOW, SAMPLE_RATE, device)
    return filters_KF.repeat_interleave(2, dim=0)

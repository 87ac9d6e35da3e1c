"""Triangular filters on the mel scale, Slaney's (Auditory Toolbox) and HTK's.

Shape suffixes: K spectrum bins, F mel bins.
"""

from __future__ import annotations

import functools
import math
from typing import Literal

import torch
from torch import Tensor

from moe_asr.errors import UserError

Scale = Literal["slaney", "htk"]


@functools.lru_cache(maxsize=8)
def mel_filters(
    scale: Scale, num_mels: int, low: float, high: float, fft_size: int, sample_rate: int, device: torch.device
) -> Tensor:
    """filters_KF in float32, for power spectra of fft_size // 2 + 1 bins.

    Args:
        scale: `slaney`: triangles in Hz, of equal area; `htk`: triangles in mel, of equal height.
        low: Lower edge of the first filter in Hz.
        high: Upper edge of the last filter in Hz.

    Raises:
        UserError: a filter lies between two bins of the spectrum.
    """
    to_mel = _slaney_scale if scale == "slaney" else _htk_scale
    bins = torch.arange(fft_size // 2 + 1, dtype=torch.float64) * sample_rate / fft_size
    first, last = to_mel(torch.tensor([low, high], dtype=torch.float64)).tolist()
    edges = torch.linspace(first, last, num_mels + 2, dtype=torch.float64)
    if scale == "slaney":
        edges = _slaney_inverse(edges)
        place_K1 = bins[:, None]
        area_F = 2.0 / (edges[2:] - edges[:-2])
    else:
        place_K1 = to_mel(bins)[:, None]
        area_F = torch.ones(num_mels, dtype=torch.float64)
    rising_KF = (place_K1 - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling_KF = (edges[2:] - place_K1) / (edges[2:] - edges[1:-1])
    filters_KF = torch.minimum(rising_KF, falling_KF).clamp(min=0) * area_F
    if not bool((filters_KF.sum(0) > 0).all()):
        raise UserError(f"{num_mels} mel filters are too narrow for an FFT of {fft_size}: use fewer")
    return filters_KF.float().to(device)


def _htk_scale(hertz: Tensor) -> Tensor:
    return 1127.0 * torch.log1p(hertz / 700.0)


_LOG_STEP = math.log(6.4) / 27.0  # slaney: linear to 1 kHz (15 mel), 27 steps from there to 6.4 kHz


def _slaney_scale(hertz: Tensor) -> Tensor:
    return torch.where(hertz < 1000.0, hertz * 0.015, 15.0 + torch.log(hertz.clamp(min=1.0) / 1000.0) / _LOG_STEP)


def _slaney_inverse(mel: Tensor) -> Tensor:
    return torch.where(mel < 15.0, mel / 0.015, 1000.0 * torch.exp(_LOG_STEP * (mel - 15.0)))

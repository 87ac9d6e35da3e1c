import pytest
import torch

from moe_asr.data.mel_filters import mel_filters
from moe_asr.errors import UserError


@pytest.mark.parametrize("scale, norm", [("slaney", "slaney"), ("htk", None)])
@pytest.mark.parametrize("num_mels, low, high, fft_size", [(80, 0.0, 8000.0, 400), (40, 20.0, 7600.0, 512)])
def test_equal_to_those_of_transformers(scale, norm, num_mels, low, high, fft_size):
    audio = pytest.importorskip("transformers.audio_utils")
    # Kaldi's, whose triangles lie in mel
    expected_KF = audio.mel_filter_bank(
        fft_size // 2 + 1, num_mels, low, high, 16000, norm, "slaney" if scale == "slaney" else "kaldi", scale == "htk"
    )
    filters_KF = mel_filters(scale, num_mels, low, high, fft_size, 16000, torch.device("cpu"))
    torch.testing.assert_close(filters_KF, torch.from_numpy(expected_KF).float(), atol=1e-7, rtol=1e-4)


def test_too_many_are_refused():
    with pytest.raises(UserError, match="300 mel filters are too narrow for an FFT of 400"):
        mel_filters("slaney", 300, 0.0, 8000.0, 400, 16000, torch.device("cpu"))

"""Convolution over time which never sees padding.

Shape letters: N utterances, T frames, I input width, O output width, K kernel length.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TimeConv(nn.Conv1d):
    """Convolution over time of frame-major tensors, with zeros beyond the end of every utterance.

    y[n, t] = b + sum_k W[:, :, k] x[n, stride * t + k - K // 2], where x counts as zero outside its utterance, so that
    the last frames of a short utterance come out the same alone and in a padded batch.

    Weights are laid out as in `nn.Conv1d`: [O, I / groups, K]. K is odd; T frames become ceil(T / stride).
    """

    def __init__(self, in_width: int, out_width: int, kernel: int, stride: int = 1, groups: int = 1):
        assert kernel % 2 == 1, "an even kernel has no middle frame"
        super().__init__(in_width, out_width, kernel, stride=stride, padding=kernel // 2, groups=groups)

    def forward(self, x_NTI: Tensor, padding_NT1: Tensor) -> Tensor:
        """x_NTI, True where a frame is padding -> y_NTO (its padding frames hold values of no meaning)."""
        x_NTI = x_NTI.masked_fill(padding_NT1, 0.0)
        if self.groups > 1 and x_NTI.device.type == "cpu":
            # In bf16 some of these never return (torch 2.13: kernel 15 on 39 frames of 16 to 64 channels).
            with torch.autocast("cpu", enabled=False):
                return self._convolve(x_NTI.float(), self.weight.float(), self.bias.float()).to(x_NTI.dtype)
        return self._convolve(x_NTI, self.weight, self.bias)

    def _convolve(self, x_NTI: Tensor, weight_OIK: Tensor, bias_O: Tensor) -> Tensor:
        # As an image of height 1 in channels-last order a frame-major tensor needs no transpose; for a depthwise
        # kernel on a CPU this is four times as fast, forward and backward, as conv1d on [N, I, T].
        image_NI1T = x_NTI.unsqueeze(1).permute(0, 3, 1, 2)
        weight_OI1K = weight_OIK.unsqueeze(2).contiguous(memory_format=torch.channels_last)
        y_NO1T = F.conv2d(
            image_NI1T, weight_OI1K, bias_O, (1, self.stride[0]), (0, self.padding[0]), groups=self.groups
        )
        return y_NO1T.permute(0, 2, 3, 1).squeeze(1)

    def output_lengths(self, lengths_N: Tensor) -> Tensor:
        """ceil(length / stride)."""
        return (lengths_N + self.stride[0] - 1) // self.stride[0]


def real_mask(lengths_N: Tensor, num_frames: int) -> Tensor:
    """Frame counts -> (N, T), True where a frame belongs to its utterance."""
    return torch.arange(num_frames, device=lengths_N.device) < lengths_N.unsqueeze(1)


def padding_mask(lengths_N: Tensor, num_frames: int) -> Tensor:
    """Frame counts -> padding_NT1, True where a frame lies beyond the end of its utterance."""
    return ~real_mask(lengths_N, num_frames).unsqueeze(2)

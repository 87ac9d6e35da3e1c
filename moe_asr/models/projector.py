"""From the states of a speech encoder to what a language model takes for embedded tokens.

Shape letters: N utterances, T encoder frames, D encoder width, L frames after the projector, W width of the LM.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from moe_asr.errors import UserError
from moe_asr.models.time_conv import TimeConv, padding_mask


@dataclass(frozen=True)
class ProjectorConfig:
    """Size of a projector.

    Args:
        hidden: channels of the convolutions; 0 takes the width of the encoder.
        ffn: width between the two linear layers.
        stride: encoder frames per frame that the language model sees.
    """

    hidden: int = 0
    ffn: int = 2048
    stride: int = 4

    def __post_init__(self):
        if self.hidden < 0 or min(self.ffn, self.stride) < 1:
            raise UserError(
                f"projector: ffn and stride must be at least 1 and hidden not negative, not {self.ffn}, {self.stride} "
                f"and {self.hidden}"
            )


class Projector(nn.Module):
    """y = LayerNorm(linear2(ReLU(linear1(conv2(GELU(conv1(x)))))))

    Both convolutions have kernel 3, the second one a stride. They see zeros beyond the end of an utterance.
    """

    def __init__(self, config: ProjectorConfig, width: int, lm_width: int) -> None:
        super().__init__()
        hidden = config.hidden or width
        self.conv1 = TimeConv(width, hidden, kernel=3)
        self.conv2 = TimeConv(hidden, hidden, kernel=3, stride=config.stride)
        self.linear1 = nn.Linear(hidden, config.ffn)
        self.linear2 = nn.Linear(config.ffn, lm_width)
        self.norm = nn.LayerNorm(lm_width)

    def forward(self, states_NTD: Tensor, lengths_N: Tensor) -> tuple[Tensor, Tensor]:
        """states_NTD, frame counts -> (speech_NLW, frame counts); padding frames are zero."""
        padding_NT1 = padding_mask(lengths_N, states_NTD.shape[1])
        x_NLD = self.conv2(F.gelu(self.conv1(states_NTD, padding_NT1)), padding_NT1)
        lengths_N = self.output_lengths(lengths_N)
        speech_NLW = self.norm(self.linear2(F.relu(self.linear1(x_NLD))))
        return speech_NLW.masked_fill(padding_mask(lengths_N, speech_NLW.shape[1]), 0.0), lengths_N

    def output_lengths(self, lengths_N: Tensor) -> Tensor:
        """Encoder frames -> frames for the language model, ceil(length / stride)."""
        return self.conv2.output_lengths(lengths_N)

"""What every speech encoder offers to the models that are built on one.

Shape letters: N utterances, T frames, F width of the features, D encoder width.
"""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from moe_asr.models.checkpointing import Checkpointed


class SpeechEncoder(Checkpointed):
    """Features to states; an utterance gives the same states alone and in any batch."""

    width: int
    """D"""

    @abstractmethod
    def forward(self, features_NTF: Tensor, lengths_N: Tensor) -> tuple[Tensor, Tensor]:
        """features_NTF, frame counts -> (states_NTD, frame counts); states of padding frames are zero."""

    @abstractmethod
    def output_lengths(self, lengths_N: Tensor) -> Tensor:
        """Feature frames -> encoder frames."""

    def too_long(self, feature_frames: int) -> str | None:
        """Why an utterance of so many feature frames is too long for the encoder; None if it is not."""
        return None

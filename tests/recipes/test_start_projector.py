"""What the frames of a projector are to say at first."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "egs/commonvoice_zh/asr_llm1/local"))
from start_projector import heard  # noqa: E402


@pytest.mark.parametrize(
    "best, stride, expected",
    [
        ([0, 0, 5, 5, 0, 7], 1, [0, 0, 5, 5, 5, 7]),  # a unit lasts until the next one begins
        ([5, 0, 5, 0], 1, [5, 5, 5, 5]),
        ([0, 5, 6, 0, 0, 0], 2, [5, 6, 6]),
        ([5, 6, 7, 8, 0, 0, 0, 0], 2, [5, 6, 7, 8]),  # several in one frame follow one by one
        ([5, 6, 7, 8], 2, [5, 6]),  # for which there may be no time
    ],
)
def test_each_frame_says_the_unit_that_ctc_writes_or_wrote_last(best, stride, expected):
    found = heard(torch.tensor([best]), torch.tensor([len(best)]), 0, stride, len(expected))
    assert found.tolist() == [expected]


def test_padding_is_not_heard():
    best = torch.tensor([[0, 5, 6, 7], [1, 2, 3, 4]])
    found = heard(best, torch.tensor([2, 4]), 0, 1, 4)
    assert found.tolist() == [[0, 5, 5, 5], [1, 2, 3, 4]]

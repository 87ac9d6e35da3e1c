"""What the frames of a projector are to say at first."""

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("pypinyin", reason="the recipe commonvoice_zh needs pypinyin")
sys.path.insert(0, str(Path(__file__).parents[2] / "egs/commonvoice_zh/asr_llm1/local"))
from start_projector import Ear  # noqa: E402

UNITS = ["", "d", "a", "4", "sh", "i", "3"]  # of CTC: the blank, then initials, finals and tones
EAR = Ear(UNITS, ["da4", "shi3", "a4", "di4", "di3"])
DA4, SHI3, A4, DI4, DI3 = range(1, 6)


def heard(best, stride=1, num_frames=None):
    return EAR(torch.tensor([best]), torch.tensor([len(best)]), stride, num_frames or -(-len(best) // stride))[
        0
    ].tolist()


@pytest.mark.parametrize(
    "best, expected",
    [
        ([0, 1, 2, 3, 0, 4, 5, 6], [0, 0, 0, DA4, 0, 0, 0, SHI3]),  # where its tone is heard
        ([1, 1, 2, 2, 0, 3, 3, 0], [0, 0, 0, 0, 0, DA4, 0, 0]),  # what lasts is one unit
        ([2, 3, 0, 2, 3], [0, A4, 0, 0, A4]),  # without an initial, and twice the same
        ([1, 2, 4, 5, 6], [0, DA4, 0, 0, SHI3]),  # without a tone: one that there is, where the final was
        ([1, 2, 0], [0, DA4, 0]),  # the same at the end
        ([1, 5, 3, 0, 1, 5, 0], [0, 0, DI4, 0, 0, DI4, 0]),  # of several the most frequent tone, 4
        ([1, 2, 6], [0, 0, DA4]),  # da3 cannot be said
        ([4, 2, 3], [0, 0, 0]),  # nor can sha with any tone
        ([3, 1, 3, 2, 3], [0, 0, 0, 0, A4]),  # a tone without a final is nothing
        ([0, 0], [0, 0]),
    ],
)
def test_units_become_syllables(best, expected):
    assert heard(best) == expected


def test_several_in_one_frame_follow_one_by_one():
    best = [1, 2, 3, 4, 5, 6, 2, 3, 0, 0, 0, 0]
    assert heard(best, 4) == [DA4, SHI3, A4]
    assert heard(best[:8], 4) == [DA4, SHI3]  # for the last one there is no time
    assert heard(best, 6) == [DA4, SHI3] and heard(best, 3) == [DA4, SHI3, A4, 0]


def test_padding_is_not_heard():
    best = torch.tensor([[1, 2, 3, 2, 3], [1, 2, 3, 2, 3]])
    assert EAR(best, torch.tensor([3, 5]), 1, 5).tolist() == [[0, 0, DA4, 0, 0], [0, 0, DA4, 0, A4]]

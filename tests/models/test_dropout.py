import pytest
import torch

from moe_asr.models.dropout import Dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_keeps_the_right_share_independently_and_scales_it(p):
    torch.manual_seed(0)
    y = Dropout(p)(torch.ones(1001, 997))
    dropped = (y == 0).double()
    sigma = (p * (1 - p) / y.numel()) ** 0.5
    assert abs(dropped.mean() - p) < 4 * sigma + 2**-16
    assert y[y != 0].unique().tolist() == pytest.approx([1 / (1 - p)])
    for shift in (1, 2, 3, 4):  # elements that share a draw, and those that do not
        pair = dropped[:, shift:] * dropped[:, :-shift]
        assert abs(pair.mean() - p * p) < 5 * (p * p * (1 - p * p) / pair.numel()) ** 0.5 + 2**-15


def test_gradient_goes_where_the_value_went():
    x = torch.randn(33, 5, requires_grad=True)
    y = Dropout(0.3)(x)
    y.sum().backward()
    torch.testing.assert_close(x.grad * x, y)


@pytest.mark.parametrize("p, training", [(0.3, False), (0.0, True)])
def test_identity_when_off(p, training):
    x = torch.randn(3, 4)
    assert torch.equal(Dropout(p).train(training)(x), x)


def test_seed_decides_and_type_is_kept():
    x = torch.randn(7, 3, dtype=torch.bfloat16)
    torch.manual_seed(3)
    first = Dropout(0.5)(x)
    torch.manual_seed(3)
    assert torch.equal(Dropout(0.5)(x), first) and first.dtype == x.dtype


def test_all_dropped():
    assert Dropout(1.0)(torch.randn(9)).tolist() == [0.0] * 9

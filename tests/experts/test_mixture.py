import pytest
import reference
import torch
from torch import nn
from torch.nn import functional as F

from moe_asr.experts.mixture import factor_mixture, merged_weight, product_mixture

N, T, I, O, E = 3, 4, 5, 6, 4
SCALE = 1.7


def setup(bias=True, per_frame=True, seed=0, R=2):
    torch.manual_seed(seed)
    base = nn.Linear(I, O, bias=bias, dtype=torch.double).requires_grad_(False)
    x = torch.randn(N, T, I, dtype=torch.double, requires_grad=True)
    A = torch.randn(E, R, I, dtype=torch.double, requires_grad=True)
    B = torch.randn(E, R, O, dtype=torch.double, requires_grad=True)
    gates = torch.rand(*((N, T, E) if per_frame else (N, E)), dtype=torch.double, requires_grad=True)
    return base, x, A, B, gates


CASES = [("product", True), ("product", False), ("factor", True), ("factor", False)]


def mix(mixing, *args):
    return (product_mixture if mixing == "product" else factor_mixture)(*args)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rank", [1, 2, 8])  # from 8 on, gates are applied in another way
@pytest.mark.parametrize("mixing, per_frame", CASES)
def test_forward_and_gradients_equal_naive_loop(mixing, per_frame, rank, bias):
    base, x, A, B, gates = setup(bias, per_frame, R=rank)
    y = mix(mixing, base, x, A, B, gates, SCALE)
    expected = reference.mixture(base.weight, base.bias, x, A, B, gates, SCALE, mixing)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    dy = torch.randn_like(y)
    ours = torch.autograd.grad(y, (x, A, B, gates), dy)
    naive = torch.autograd.grad(expected, (x, A, B, gates), dy)
    torch.testing.assert_close(ours, naive, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("mixing, per_frame", CASES)
def test_gradcheck(mixing, per_frame):
    base, x, A, B, gates = setup(per_frame=per_frame)
    assert torch.autograd.gradcheck(lambda *args: mix(mixing, base, *args, SCALE), (x, A, B, gates))


@pytest.mark.parametrize("mixing, per_frame", CASES)
def test_gradcheck_with_dropped_input(mixing, per_frame):
    base, x, A, B, gates = setup(per_frame=per_frame)
    dropped = torch.randn_like(x, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, u, A, B, g: mix(mixing, base, x, A, B, g, SCALE, u), (x, dropped, A, B, gates)
    )


def test_only_what_needs_a_gradient_gets_one():
    base, x, A, B, gates = setup()
    y = product_mixture(base, x.detach(), A, B, gates.detach(), SCALE)
    dA, dB = torch.autograd.grad(y.sum(), (A, B))
    full = product_mixture(base, x, A, B, gates, SCALE)
    torch.testing.assert_close((dA, dB), torch.autograd.grad(full.sum(), (A, B)))


def test_zero_bank_equals_base_bit_for_bit():
    torch.manual_seed(0)
    base = nn.Linear(37, 41)
    x, A = torch.randn(3, 50, 37), torch.randn(5, 3, 37)
    for gates in (torch.rand(3, 50, 5), torch.rand(3, 5)):
        assert torch.equal(product_mixture(base, x, A, torch.zeros(5, 3, 41), gates, 2.0), base(x))
        assert torch.equal(factor_mixture(base, x, A, torch.zeros(5, 3, 41), gates, 2.0), base(x))


@pytest.mark.parametrize("mixing, per_frame", CASES)
def test_one_expert_of_weight_one_is_plain_lora(mixing, per_frame):
    base, x, A, B, _ = setup()
    gates = torch.ones(*((N, T, 1) if per_frame else (N, 1)), dtype=torch.double)
    lora = base(x) + SCALE * F.linear(F.linear(x, A[0]), B[0].t())
    torch.testing.assert_close(mix(mixing, base, x, A[:1], B[:1], gates, SCALE), lora, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mixing, per_frame", CASES)
@pytest.mark.parametrize("expert", range(E))
def test_one_hot_is_that_expert_alone(mixing, per_frame, expert):
    base, x, A, B, gates = setup(per_frame=per_frame)
    one_hot = F.one_hot(torch.full(gates.shape[:-1], expert), E).double()
    alone = base(x) + SCALE * F.linear(F.linear(x, A[expert]), B[expert].t())
    torch.testing.assert_close(mix(mixing, base, x, A, B, one_hot, SCALE), alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mixing, per_frame", CASES)
def test_identical_experts_give_that_expert(mixing, per_frame):
    base, x, A, B, gates = setup(per_frame=per_frame)
    gates = gates / gates.sum(-1, keepdim=True)
    alone = base(x) + SCALE * F.linear(F.linear(x, A[0]), B[0].t())
    y = mix(mixing, base, x, A[:1].expand(E, -1, I), B[:1].expand(E, -1, O), gates, SCALE)
    torch.testing.assert_close(y, alone, rtol=1e-12, atol=1e-12)


def test_equal_weights_of_frames_are_those_of_the_utterance():
    base, x, A, B, gates = setup(per_frame=False)
    frames = gates[:, None].expand(N, T, E)
    for mixture in (product_mixture, factor_mixture):
        expected = mixture(base, x, A, B, gates, SCALE)
        torch.testing.assert_close(mixture(base, x, A, B, frames, SCALE), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("per_frame", [True, False])
def test_factor_differs_from_product(per_frame):
    base, x, A, B, gates = setup(per_frame=per_frame)
    product = product_mixture(base, x, A, B, gates, SCALE)
    factor = factor_mixture(base, x, A, B, gates, SCALE)
    assert (product - factor).abs().max() > 0.1


@pytest.mark.parametrize("mixing", ["product", "factor"])
def test_merged_weight_equals_mixture(mixing):
    base, x, A, B, gates = setup(per_frame=False)
    gates = gates[:1].expand(N, E)
    y = mix(mixing, base, x, A, B, gates, SCALE)
    weight = merged_weight(base.weight, A, B, gates[0], SCALE, mixing)
    torch.testing.assert_close(F.linear(x, weight, base.bias), y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mixing, per_frame", CASES)
def test_bfloat16_follows_float64(mixing, per_frame):
    base, x, A, B, gates = setup(per_frame=per_frame)
    expected = mix(mixing, base, x, A, B, gates, SCALE)
    half = [tensor.detach().to(torch.bfloat16).requires_grad_() for tensor in (x, A, B, gates)]
    y = mix(mixing, base.to(torch.bfloat16), *half, SCALE)
    assert y.dtype == torch.bfloat16
    assert ((y.double() - expected).norm() / expected.norm()) < 1e-2
    y.sum().backward()
    assert all(tensor.grad.dtype == torch.bfloat16 and torch.isfinite(tensor.grad).all() for tensor in half)

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from moe_asr.models.time_conv import TimeConv, padding_mask
from moe_asr.quant.layers import Nf4Layer, Nf4Linear, can_pack, pack, unpack
from moe_asr.quant.nf4 import dequantise_nf4, quantise_nf4

LAYERS = {
    "linear": (lambda: nn.Linear(48, 20), lambda: (torch.randn(2, 7, 48),)),
    "linear without bias": (lambda: nn.Linear(13, 5, bias=False), lambda: (torch.randn(4, 13),)),
    "convolution": (lambda: nn.Conv1d(6, 10, 3, padding=1), lambda: (torch.randn(2, 6, 9),)),
    "depthwise": (
        lambda: TimeConv(12, 12, 5, groups=12),
        lambda: (torch.randn(2, 9, 12), padding_mask(torch.tensor([9, 6]), 9)),
    ),
    "strided": (
        lambda: TimeConv(7, 12, 3, stride=2),
        lambda: (torch.randn(2, 9, 7), padding_mask(torch.tensor([9, 6]), 9)),
    ),
    "embedding": (lambda: nn.Embedding(30, 64), lambda: (torch.randint(30, (3, 4)),)),
    "odd embedding": (lambda: nn.Embedding(30, 7, padding_idx=0), lambda: (torch.randint(30, (5,)),)),
}


def make(kind, double=False):
    """The layer in 4 bits, a plain one with the same values, and an input."""
    torch.manual_seed(0)
    packed = LAYERS[kind][0]()
    plain, weight = copy.deepcopy(packed), packed.weight.detach().clone()
    pack(packed, 64, double)
    with torch.no_grad():
        plain.weight.copy_(packed.weight)
    return packed, plain, LAYERS[kind][1](), weight


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_computes_what_a_plain_layer_with_its_weight_does(kind, double):
    packed, plain, inputs, weight = make(kind, double)
    assert torch.equal(packed(*inputs), plain(*inputs))
    assert packed.weight.shape == weight.shape and 0 < (packed.weight - weight).abs().max() < 0.2 * weight.abs().max()
    if not double:
        assert torch.equal(packed.weight, dequantise_nf4(*quantise_nf4(weight, 64), weight.shape, 64))


@pytest.mark.parametrize("kind", LAYERS)
def test_stores_codes_and_scales_only(kind):
    packed, plain, _, weight = make(kind)
    state = packed.state_dict()
    assert state.keys() == {"codes", "absmax"} | (plain.state_dict().keys() - {"weight"})
    assert {name for name, _ in packed.named_parameters()} == plain.state_dict().keys() - {"weight"}
    blocks = -(-weight.numel() // 64)
    assert state["codes"].nbytes == -(-weight.numel() // 2) and state["absmax"].nbytes == 4 * blocks


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_state_goes_through_safetensors_and_a_layer_on_meta(kind, double, tmp_path):
    packed, _, inputs, _ = make(kind, double)
    save_file(packed.state_dict(), tmp_path / "layer.safetensors")
    with torch.device("meta"):
        other = LAYERS[kind][0]()
        pack(other, 64, double)
    other.load_state_dict(load_file(tmp_path / "layer.safetensors"), assign=True)
    assert torch.equal(other(*inputs), packed(*inputs)) and torch.equal(other.weight, packed.weight)
    again = copy.deepcopy(packed)
    again.load_state_dict(other.state_dict())
    assert torch.equal(again(*inputs), packed(*inputs))


@pytest.mark.parametrize("kind", ["linear", "linear without bias", "convolution", "depthwise", "strided"])
def test_gradients_are_those_of_a_frozen_layer_in_both_modes(kind):
    packed, plain, (x, *others), _ = make(kind)
    plain.weight.requires_grad_(False)
    for training in (True, False, True):
        grads = []
        for layer in (packed.train(training), plain.train(training)):
            inputs = [x.clone().requires_grad_(), *(p for p in layer.parameters() if p.requires_grad)]
            y = layer(inputs[0], *others)
            grads.append(torch.autograd.grad(y, inputs, torch.ones_like(y).cumsum(1)))
        assert grads[0][0].abs().sum() > 0
        for ours, expected in zip(*grads, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-5)


def test_linear_keeps_nothing_for_backward():
    packed, _, (x,), _ = make("linear")
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        packed.requires_grad_(False)(x.requires_grad_()).sum().backward()
    assert not kept and x.grad is not None


def test_embedding_looks_up_rows_without_making_the_others(monkeypatch):
    packed, plain, (index,), _ = make("embedding")
    monkeypatch.setattr(Nf4Layer, "dequantise", lambda self: pytest.fail("the whole was dequantised"))
    assert torch.equal(packed(index), plain(index))


@pytest.mark.parametrize("kind", LAYERS)
def test_unpacks_into_what_it_was(kind):
    packed, plain, inputs, _ = make(kind)
    expected = packed(*inputs)
    unpack(packed)
    assert type(packed) is type(plain) and list(packed.state_dict()) == list(plain.state_dict())
    assert torch.equal(packed.weight, plain.weight) and not packed.weight.requires_grad
    assert torch.equal(packed(*inputs), expected) and packed.__dict__.keys() == plain.__dict__.keys()


def test_computes_in_bfloat16_under_autocast():
    packed, plain, (x,), _ = make("linear")
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        ours, expected = packed(x), plain(x)
    assert ours.dtype == torch.bfloat16 and torch.equal(ours, expected)
    (grad,) = torch.autograd.grad(ours.float().sum(), x)
    (expected_grad,) = torch.autograd.grad(expected.float().sum(), x)
    assert grad.dtype == torch.float32 and torch.equal(grad, expected_grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", LAYERS)
def test_casting_casts_scales_and_weight_and_leaves_codes(kind, dtype):
    packed, plain, inputs, _ = make(kind)
    codes = packed.codes.clone()
    inputs = [x.to(dtype) if x.is_floating_point() else x for x in inputs]
    packed.to(dtype)
    assert packed.weight.dtype == dtype and torch.equal(packed.codes, codes)
    with torch.no_grad():
        plain.to(dtype).weight.copy_(packed.weight)
    assert packed(*inputs).dtype == dtype and torch.equal(packed(*inputs), plain(*inputs))


def test_weight_of_16_bits_keeps_its_type_and_exact_scales():
    layer = nn.Linear(64, 3).bfloat16()
    weight = layer.weight.detach().clone()
    pack(layer, 64, double=False)
    assert layer.weight.dtype == torch.bfloat16
    assert torch.equal(layer.weight, dequantise_nf4(*quantise_nf4(weight.float(), 64), (3, 64), 64).bfloat16())


def test_gradient_checkpointing_changes_nothing():
    packed, _, (x,), _ = make("linear")
    x.requires_grad_()
    grad = torch.autograd.grad(packed(x).square().sum(), x)
    again = torch.autograd.grad(torch.utils.checkpoint.checkpoint(packed, x, use_reentrant=False).square().sum(), x)
    assert torch.equal(grad[0], again[0])


def test_only_layers_that_use_their_weight_as_usual_can_be_packed():
    class Other(nn.Linear):
        def forward(self, x):
            return x @ self.weight.data.t()

    assert not can_pack(Other(2, 2)) and not can_pack(nn.LayerNorm(2)) and not can_pack(nn.Conv2d(2, 2, 1))
    assert not can_pack(nn.Embedding(2, 2, max_norm=1.0))
    assert can_pack(nn.Linear(2, 2)) and can_pack(TimeConv(2, 2, 3)) and can_pack(nn.Embedding(2, 2))
    packed = make("linear")[0]
    assert isinstance(packed, Nf4Linear) and not isinstance(packed, nn.Linear) and not can_pack(packed)

import pytest
import torch
import torch.nn.functional as F

from moe_asr.losses import chunks
from moe_asr.losses.cross_entropy import chunked_cross_entropy

M, D, V = 23, 6, 11


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(M, D, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(V, D, generator=generator, dtype=torch.float64).requires_grad_()
    return hidden, weight, torch.randint(V, (M,), generator=generator)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [1, 5 * V, 2**24])  # one position at a time, several with a rest, all
def test_equals_torch_with_gradients(inputs, smoothing, chunk, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", chunk)
    hidden, weight, targets = inputs
    total, parts = chunked_cross_entropy(hidden.float(), weight.float(), targets, smoothing)
    (3 * total).backward()
    found = hidden.grad, weight.grad
    hidden.grad = weight.grad = None
    logits = hidden @ weight.t()
    expected = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
    (3 * expected).backward()
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(found, (hidden.grad, weight.grad), rtol=1e-4, atol=1e-5)
    assert int(parts["accuracy"]) == int((logits.argmax(1) == targets).sum())


def test_a_frozen_embedding_gets_no_gradient(inputs):
    hidden, weight, targets = inputs
    total, _ = chunked_cross_entropy(hidden.float(), weight.detach().float(), targets)
    total.backward()
    assert hidden.grad is not None and weight.grad is None


def test_holds_no_gradients_where_none_are_wanted(inputs):
    hidden, weight, targets = inputs
    with torch.no_grad():
        total, _ = chunked_cross_entropy(hidden.float(), weight.float(), targets)
    assert not total.requires_grad


def test_at_most_one_chunk_of_logits_is_ever_held(inputs, monkeypatch):
    """No tensor as large as all logits is saved for the backward pass."""
    monkeypatch.setattr(chunks, "CHUNK", 2 * V)
    hidden, weight, targets = inputs
    total, _ = chunked_cross_entropy(hidden.float(), weight.float(), targets)
    saved = [t.numel() for t in total.grad_fn.saved_tensors]
    assert sorted(saved) == sorted([M * D, V * D])


def test_bf16_under_autocast(inputs):
    hidden, weight, targets = (t.detach() for t in inputs)
    hidden, weight = hidden.float().requires_grad_(), weight.float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, _ = chunked_cross_entropy(hidden, weight, targets)
    total.backward()
    rounded = hidden.bfloat16().float() @ weight.bfloat16().float().t()
    expected = F.cross_entropy(rounded.bfloat16().float(), targets, reduction="sum")
    torch.testing.assert_close(total, expected, rtol=1e-3, atol=0)
    assert hidden.grad.dtype == weight.grad.dtype == torch.float32

import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from moe_asr.errors import UserError
from moe_asr.models.conformer import (
    ADAPTER_TARGETS,
    Attention,
    ConformerConfig,
    ConformerEncoder,
    rotate,
    rotation,
)

LENGTHS = [1, 2, 3, 4, 5, 9, 16, 31, 32, 33]


@pytest.fixture
def encoder(tiny):
    torch.manual_seed(0)
    return ConformerEncoder(tiny).eval()


@pytest.mark.parametrize("longer", [0, 1, 2, 3, 21])
@pytest.mark.parametrize("subsampling", [2, 4, 8])
@torch.no_grad()
def test_utterance_alone_equals_itself_in_any_batch(tiny, make_batch, longer, subsampling):
    torch.manual_seed(0)
    encoder = ConformerEncoder(replace(tiny, subsampling=subsampling)).eval()
    x, lengths, utterances = make_batch(LENGTHS, longer=longer)
    states, frames = encoder(x, lengths)
    assert frames.tolist() == [-(-n // subsampling) for n in LENGTHS] == encoder.output_lengths(lengths).tolist()
    for row, n, utterance in zip(states, frames, utterances):
        alone, (m,) = encoder(utterance[None], torch.tensor([len(utterance)]))
        assert n == m == alone.size(1)
        torch.testing.assert_close(row[:n], alone[0], atol=1e-5, rtol=0)
        assert row[n:].eq(0).all()


@torch.no_grad()
def test_batch_mates_and_order_change_nothing(encoder, make_batch):
    x, lengths, _ = make_batch([20, 13, 7], longer=3)
    states, _ = encoder(x, lengths)
    others = x.clone()
    others[0] = -x[0]
    torch.testing.assert_close(encoder(others, lengths)[0][1:], states[1:], atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder(x.flip(0), lengths.flip(0))[0].flip(0), states, atol=1e-5, rtol=0)


def test_nothing_flows_from_or_into_padding(encoder, make_batch):
    x, lengths, _ = make_batch([20, 13, 6], longer=3, rubbish=float("nan"))
    states, _ = encoder(x.requires_grad_(), lengths)
    assert states.isfinite().all()
    (states * torch.randn_like(states)).sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.ne(0).any() for p in encoder.parameters())
    for grad, n in zip(x.grad, lengths):
        assert grad[n:].eq(0).all() and grad[:n].ne(0).any(dim=1).all()


def test_utterance_without_frames_gives_zeros_and_no_nan(encoder, make_batch):
    x, _, _ = make_batch([9, 9])
    states, frames = encoder(x, torch.tensor([0, 9]))
    assert frames.tolist() == [0, 3]
    assert states[0].eq(0).all() and states.isfinite().all()
    states.sum().backward()
    assert all(p.grad.isfinite().all() for p in encoder.parameters())


@torch.no_grad()
def test_whole_encoder_equals_its_formula_written_with_loops(encoder):
    """One unpadded utterance through convolutions, rotary attention and feed-forward modules, written naively."""
    encoder = encoder.double()
    x = torch.randn(23, 7, dtype=torch.float64)
    got = encoder(x[None], torch.tensor([23]))[0][0]

    for conv in encoder.subsampling.convs:
        x = F.silu(F.conv1d(x.T[None], conv.weight, conv.bias, stride=2, padding=1)[0].T)
    x = encoder.subsampling.norm(x)
    for layer in encoder.layers:
        x = x + 0.5 * naive_ffn(layer.ffn1, x)
        x = x + naive_attention(layer.attention, x)
        x = x + naive_convolution(layer.conv, x)
        x = layer.norm(x + 0.5 * naive_ffn(layer.ffn2, x))
    torch.testing.assert_close(got, x)


def naive_ffn(ffn, x):
    hidden = ffn.up(ffn.norm(x))
    return ffn.down(hidden * torch.sigmoid(hidden))


def naive_convolution(conv, x):
    value, gate = conv.pointwise_in(conv.norm(x)).chunk(2, dim=1)
    x = value * torch.sigmoid(gate)
    x = F.conv1d(x.T[None], conv.depthwise.weight, conv.depthwise.bias, padding=2, groups=x.size(1))[0].T
    return conv.pointwise_out(F.silu(conv.depthwise_norm(x)))


def naive_attention(attention, x):
    x, width = attention.norm(x), x.size(1) // attention.heads
    q, k, v = attention.q_proj(x), attention.k_proj(x), attention.v_proj(x)
    y = torch.zeros_like(x)
    for h in range(attention.heads):
        part = slice(h * width, (h + 1) * width)
        for t in range(len(x)):
            scores = torch.stack([turned(q[t, part], t) @ turned(k[s, part], s) for s in range(len(x))]) / width**0.5
            y[t, part] = scores.softmax(0) @ v[:, part]
    return attention.out_proj(y)


def turned(x, t):
    """Rotates pairs (2j, 2j + 1) of a vector by t * 10000^(-2j / K)."""
    y = torch.empty_like(x)
    for j in range(0, len(x), 2):
        angle = torch.tensor(t * 10000 ** (-j / len(x)), dtype=x.dtype)
        y[j] = x[j] * angle.cos() - x[j + 1] * angle.sin()
        y[j + 1] = x[j] * angle.sin() + x[j + 1] * angle.cos()
    return y


def test_rotary_products_depend_on_distance_alone():
    q, k = torch.randn(8), torch.randn(8)
    table = rotation(50, 8, torch.device("cpu"))
    rows = rotate(torch.stack([q, k])[:, None].expand(2, 50, 8).reshape(1, 2, 50, 8), table)[0]
    products = rows[0] @ rows[1].T
    for distance in (-7, 0, 3):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4, rtol=0)


def test_gradient_checkpointing_changes_no_gradient(tiny, make_batch):
    x, lengths, _ = make_batch([20, 13])
    grads = []
    for enabled in (False, True):
        torch.manual_seed(0)
        encoder = ConformerEncoder(replace(tiny, dropout=0.2))
        encoder.gradient_checkpointing = enabled
        encoder(x, lengths)[0].square().sum().backward()
        grads.append([p.grad for p in encoder.parameters()])
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b, atol=0, rtol=0)


def test_bf16_runs_and_is_near(encoder, make_batch):
    x, lengths, _ = make_batch([40, 21, 5])
    exact, _ = encoder(x, lengths)
    with torch.autocast("cpu", torch.bfloat16):
        near, _ = encoder(x, lengths)
    assert (near.float() - exact).norm() / exact.norm() < 0.02
    near.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in encoder.parameters())


def test_dropout_only_in_training(tiny, make_batch):
    encoder = ConformerEncoder(replace(tiny, dropout=0.5))
    x, lengths, _ = make_batch([20, 13])
    assert not torch.equal(encoder(x, lengths)[0], encoder(x, lengths)[0])
    encoder.eval()
    assert torch.equal(encoder(x, lengths)[0], encoder(x, lengths)[0])


def test_targets_are_all_linear_layers(encoder):
    linear = {name for name, module in encoder.named_modules() if isinstance(module, torch.nn.Linear)}
    assert linear == {n for n, _ in encoder.named_modules() if any(re.fullmatch(t, n) for t in ADAPTER_TARGETS)}
    assert len(linear) == 2 * (4 + 4 + 2)


def test_attention_sees_no_masked_key(tiny):
    attention = Attention(tiny)
    x = torch.randn(1, 6, tiny.width)
    keys = torch.tensor([True] * 4 + [False] * 2).view(1, 1, 1, 6)
    table = rotation(6, tiny.width // tiny.heads, x.device)
    changed = x.clone()
    changed[:, 4:] += 1
    torch.testing.assert_close(attention(x, keys, table)[:, :4], attention(changed, keys, table)[:, :4])


@pytest.mark.parametrize(
    "values, says",
    [
        ({"width": 10, "heads": 4}, "multiple of 8"),
        ({"kernel": 4}, "odd"),
        ({"subsampling": 3}, "2, 4, 8"),
        ({"subsampling": 1}, "2, 4, 8"),
        ({"dropout": 1.0}, "dropout"),
        ({"layers": 0}, "layers"),
    ],
)
def test_impossible_size_is_refused(values, says):
    with pytest.raises(UserError, match=says):
        ConformerConfig(**values)

import subprocess
import sys

import pytest
import torch

from moe_asr.models.time_conv import TimeConv, padding_mask


def naive(conv, x_TI):
    """Loops over frames, kernel positions and groups, with zeros outside the utterance."""
    weight, (stride,), half = conv.weight, conv.stride, conv.kernel_size[0] // 2
    per_group = conv.out_channels // conv.groups
    frames = []
    for centre in range(0, len(x_TI), stride):
        y = conv.bias.clone()
        for k in range(conv.kernel_size[0]):
            t = centre + k - half
            if 0 <= t < len(x_TI):
                for o in range(conv.out_channels):
                    first = (o // per_group) * weight.shape[1]
                    y[o] += weight[o, :, k] @ x_TI[t, first : first + weight.shape[1]]
        frames.append(y)
    return torch.stack(frames)


@pytest.mark.parametrize("kernel, stride, groups, width", [(3, 2, 1, 4), (5, 1, 6, 6), (1, 1, 1, 3), (7, 3, 2, 8)])
@torch.no_grad()
def test_each_utterance_of_a_padded_batch_equals_loops_over_it_alone(make_batch, kernel, stride, groups, width):
    torch.manual_seed(0)
    conv = TimeConv(6, width, kernel, stride, groups).double()
    x, lengths, utterances = make_batch([1, 2, 3, 8, 9, 12], mels=6, longer=2)
    y = conv(x.double(), padding_mask(lengths, x.size(1)))
    for row, n, utterance in zip(y, conv.output_lengths(lengths), utterances):
        expected = naive(conv, utterance.double())
        assert n == len(expected)
        torch.testing.assert_close(row[:n], expected)


def test_state_is_that_of_conv1d():
    conv = TimeConv(4, 6, 3, groups=2)
    torch.nn.Conv1d(4, 6, 3, groups=2).load_state_dict(conv.state_dict())


def test_not_even_nan_in_padding_gets_through(make_batch):
    conv = TimeConv(7, 4, 3)
    x, lengths, _ = make_batch([5, 9], rubbish=float("nan"))
    y = conv(x.requires_grad_(), padding_mask(lengths, 9))
    assert y.isfinite().all()
    y.sum().backward()
    assert x.grad[0, 5:].eq(0).all() and x.grad[0, :5].ne(0).all()


def test_padding_mask():
    expected = [[True] * 3, [False, False, True], [False] * 3]
    assert padding_mask(torch.tensor([0, 2, 3]), 3).squeeze(2).tolist() == expected


@pytest.mark.parametrize("lowered", [False, True])
def test_depthwise_in_bf16_comes_to_an_end(lowered):
    """Some shapes never came back from oneDNN, so another process runs them."""
    code = (
        "import torch; from moe_asr.models.time_conv import TimeConv; torch.manual_seed(0); "
        "conv, x = TimeConv(16, 16, 15, groups=16), torch.randn(4, 39, 16); "
        "none = torch.zeros(4, 39, 1, dtype=torch.bool); "
        "y = conv(x, none); bf16 = torch.autocast('cpu', torch.bfloat16); bf16.__enter__(); "
        f"conv.to(torch.bfloat16 if {lowered} else torch.float32); z = conv(x.bfloat16(), none); "
        "print(z.dtype, (z - y).abs().max().item() < 0.02)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["torch.bfloat16", "True"], done.stderr

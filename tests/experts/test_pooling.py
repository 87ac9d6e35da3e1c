import pytest
import torch
from torch.nn import functional as F

from moe_asr.errors import UserError
from moe_asr.experts.pooling import AttentivePooling, MeanPooling

N, T, I = 3, 7, 5
LENGTHS = torch.tensor([7, 1, 4])
MASK = torch.arange(T) < LENGTHS[:, None]
every_over = pytest.mark.parametrize("over", ["real", "prefix", "all"])
both = pytest.mark.parametrize("kind", [MeanPooling, AttentivePooling])


def setup(kind=AttentivePooling, seed=0):
    torch.manual_seed(seed)
    pooling = kind(I, dtype=torch.double) if kind is AttentivePooling else kind()
    for parameter in pooling.parameters():
        torch.nn.init.normal_(parameter)
    return pooling, torch.randn(N, T, I, dtype=torch.double)


def naive(pooling, x_TI, frames):
    """z of the first `frames` frames of one utterance, alone, the convolution lying around t."""
    if isinstance(pooling, MeanPooling):
        return x_TI[:frames].mean(0)
    u_TI = F.conv1d(x_TI[:frames].T[None], pooling.weight, pooling.bias, padding=1)[0].T
    a_T = torch.softmax(torch.stack([pooling.query @ u_I for u_I in u_TI]), 0)
    return sum(a * u_I for a, u_I in zip(a_T, u_TI))


def naive_prefix(pooling, x_TI, t):
    """z of the frames up to t, the convolution looking back."""
    if isinstance(pooling, MeanPooling):
        return x_TI[: t + 1].mean(0)
    u_TI = F.conv1d(F.pad(x_TI.T[None], (2, 0)), pooling.weight, pooling.bias)[0].T[: t + 1]
    a_T = torch.softmax(torch.stack([pooling.query @ u_I for u_I in u_TI]), 0)
    return sum(a * u_I for a, u_I in zip(a_T, u_TI))


def expected(pooling, x_NTI, over):
    if over == "prefix":
        return torch.stack([torch.stack([naive_prefix(pooling, x_TI, t) for t in range(T)]) for x_TI in x_NTI])
    lengths = LENGTHS.tolist() if over == "real" else [T] * N
    return torch.stack([naive(pooling, x_TI, frames) for x_TI, frames in zip(x_NTI, lengths)])[:, None]


@both
@every_over
def test_equals_naive_loop_with_gradients(kind, over):
    pooling, x = setup(kind)
    x.requires_grad_()
    mask = None if over == "prefix" else MASK  # with a mask, prefix also leaves alone what padding would get
    z, reference = pooling(x, mask, over), expected(pooling, x, over)
    torch.testing.assert_close(z, reference, rtol=1e-12, atol=1e-12)
    dz = torch.randn_like(z)
    inputs = [x, *pooling.parameters()]
    ours, theirs = torch.autograd.grad(z, inputs, dz), torch.autograd.grad(reference, inputs, dz)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)


@both
@pytest.mark.parametrize("over", ["real", "prefix"])
def test_padding_and_batch_mates_change_nothing(kind, over):
    pooling, x = setup(kind)
    together = pooling(x, MASK, over)
    padded = pooling(torch.where(MASK[..., None], x, float("nan")), MASK, over)
    for n, length in enumerate(LENGTHS.tolist()):
        alone = pooling(x[n : n + 1, :length], MASK[n : n + 1, :length], over)
        z = together[n, :length] if over == "prefix" else together[n]
        torch.testing.assert_close(z, alone[0], rtol=1e-12, atol=1e-12)
        assert torch.equal(padded[n, : z.shape[0]], z)


@both
def test_over_all_sees_padding(kind):
    pooling, x = setup(kind)
    assert not torch.allclose(pooling(x, MASK, "all")[1], pooling(x[1:2, :1], MASK[1:2, :1], "all")[0])


@both
def test_prefix_does_not_see_the_future(kind):
    pooling, x = setup(kind)
    before = pooling(x, None, "prefix")
    for t in range(T):
        changed = x.clone()
        changed[:, t:] = 100 * torch.randn(N, T - t, I, dtype=torch.double)
        after = pooling(changed, None, "prefix")
        torch.testing.assert_close(after[:, :t], before[:, :t], rtol=1e-12, atol=1e-12)
        assert not torch.allclose(after[:, t], before[:, t])


@every_over
def test_extreme_scores_stay_finite(over):
    pooling, x = setup()
    with torch.no_grad():
        pooling.query.mul_(1e6)
    x.requires_grad_()
    z = pooling(x, MASK, over)
    z.sum().backward()
    assert torch.isfinite(z).all() and torch.isfinite(x.grad).all()


@every_over
@pytest.mark.parametrize("frames", [1, 2])
def test_shorter_than_the_kernel(over, frames):
    pooling, x = setup()
    z = pooling(x[:, :frames], torch.ones(N, frames, dtype=torch.bool), over)
    reference = naive_prefix if over == "prefix" else naive
    last = frames - 1 if over == "prefix" else frames
    torch.testing.assert_close(z[:, -1], torch.stack([reference(pooling, x_TI, last) for x_TI in x[:, :frames]]))


def test_a_bias_of_the_scores_would_change_nothing():
    # `bias` reaches the scores as q . b; what it adds there cancels, so its gradient is that of the sum alone.
    pooling, x = setup()
    z = pooling(x, MASK)
    (gradient,) = torch.autograd.grad(z.sum(), pooling.bias)
    torch.testing.assert_close(gradient, torch.full((I,), float(N), dtype=torch.double))


@both
def test_real_frames_must_be_known(kind):
    pooling, x = setup(kind)
    with pytest.raises(UserError, match="lengths"):
        pooling(x, None, "real")

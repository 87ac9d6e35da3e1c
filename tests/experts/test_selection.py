import pytest
import reference
import torch

from moe_asr.experts.selection import hard_threshold, soft_threshold, sparsegen, top_k


def probabilities(seed=0, shape=(7, 5)):
    torch.manual_seed(seed)
    return (2 * torch.randn(*shape, dtype=torch.double)).softmax(-1)


@pytest.mark.parametrize("tau", [0.0, 0.05, 0.1, 0.199])
def test_thresholds_equal_naive(tau):
    p = probabilities()
    for ours, naive in ((soft_threshold, reference.soft_threshold), (hard_threshold, reference.hard_threshold)):
        expected = torch.stack([naive(row, tau) for row in p])
        torch.testing.assert_close(ours(p, torch.tensor([tau], dtype=torch.double)), expected)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_equals_naive_also_on_ties(k):
    p = torch.cat([probabilities(), torch.full((1, 5), 0.2, dtype=torch.double)])
    torch.testing.assert_close(top_k(p, k), torch.stack([reference.top_k(row, k) for row in p]))


def test_threshold_zero_and_all_experts_keep_p():
    p = probabilities()
    zero = torch.zeros(1, dtype=torch.double)
    for w in (soft_threshold(p, zero), hard_threshold(p, zero), sparsegen(p, zero), top_k(p, 5)):
        torch.testing.assert_close(w, p)


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9, 0.999])
def test_sparsegen_is_the_projection(sparsity):
    # KKT of the projection: w is on the simplex, and z - w is one constant on the support and no larger off it.
    p = probabilities()
    w, z = sparsegen(p, torch.tensor([sparsity], dtype=torch.double)), p / (1 - sparsity)
    torch.testing.assert_close(w.sum(-1), torch.ones(7, dtype=torch.double))
    for w_E, z_E in zip(w, z):
        on = w_E > 0
        tau = (z_E - w_E)[on]
        assert on.any() and (tau.max() - tau.min()) < 1e-9
        assert (z_E[~on] <= tau.mean() + 1e-9).all()


def test_sparsegen_sharpens_towards_one_expert():
    p = probabilities()
    active = [int((sparsegen(p, torch.tensor([s], dtype=torch.double)) > 0).sum()) for s in (0.0, 0.5, 0.9, 0.9999)]
    assert active == sorted(active, reverse=True) and active[0] == p.numel() and active[-1] == len(p)


@pytest.mark.parametrize("shape", [(7, 1), (1,)])
@pytest.mark.parametrize("function", [soft_threshold, sparsegen])
def test_gradients_reach_p_and_threshold(function, shape):
    logits = torch.randn(7, 5, dtype=torch.double, generator=torch.Generator().manual_seed(1)).requires_grad_()
    level = torch.full(shape, 0.11, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: function(a.softmax(-1), b), (logits, level))


def test_a_survivor_always():
    p = torch.full((1, 8), 1 / 8)
    p[0, 3] += 1e-6
    for w in (soft_threshold(p, torch.tensor([1 / 8])), hard_threshold(p, torch.tensor([1 / 8])), top_k(p, 1)):
        assert torch.isfinite(w).all() and w.sum().item() == pytest.approx(1) and w[0, 3] > 0


def test_sparsegen_at_the_limit_is_the_largest_alone():
    p = probabilities().float()
    w = sparsegen(p, torch.tensor([1.0]))
    assert torch.equal(w, torch.nn.functional.one_hot(p.argmax(-1), 5).float())

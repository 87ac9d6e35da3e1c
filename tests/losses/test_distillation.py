import pytest
import torch

from moe_asr.errors import UserError
from moe_asr.losses import chunks
from moe_asr.losses.cross_entropy import chunked_cross_entropy
from moe_asr.losses.distillation import distillation_loss
from moe_asr.losses.top_tokens import top_tokens

M, D, V = 17, 6, 11


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(M, D, generator=generator, dtype=torch.float64) for _ in range(2))
    weight = torch.randn(V, D, generator=generator, dtype=torch.float64)
    return student.requires_grad_(), weight.requires_grad_(), torch.randint(V, (M,), generator=generator), teacher


def naive(student, weight, targets, teacher, lam, T, divergence, smoothing):
    """Position by position, token by token."""
    weight = [weight, weight.detach()]  # what the teacher says has no gradient
    ce = apart = 0.0
    for h, y, t in zip(student, targets, teacher):
        p_s, p_t = ((x @ W.t() / T).softmax(-1) for x, W in zip((h, t), weight))
        log_p = (h @ weight[0].t()).log_softmax(-1)
        ce = ce - (1 - smoothing) * log_p[y] - smoothing / V * log_p.sum()
        for s, p in zip(p_s, p_t):
            m = (s + p) / 2
            apart = apart + (p * (p / s).log() if divergence == "kl" else (p * (p / m).log() + s * (s / m).log()) / 2)
    return (1 - lam) * ce + lam * T**2 * apart, ce, apart


@pytest.mark.parametrize("divergence", ["kl", "js"])
@pytest.mark.parametrize("lam, T, smoothing", [(0.5, 1.0, 0.0), (0.8, 2.5, 0.1), (1.0, 0.7, 0.0), (0.0, 1.0, 0.1)])
@pytest.mark.parametrize("chunk", [1, 5 * V, 2**24])
def test_equals_the_naive_sum_with_gradients(inputs, divergence, lam, T, smoothing, chunk, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", chunk)
    student, weight, targets, teacher = inputs
    total, parts = distillation_loss(
        student.float(), weight.float(), targets, smoothing,
        teacher=teacher.float(), weight=lam, temperature=T, divergence=divergence,
    )  # fmt: skip
    (3 * total).backward()
    found = student.grad, weight.grad
    student.grad = weight.grad = None
    expected, ce, apart = naive(student, weight, targets, teacher, lam, T, divergence, smoothing)
    (3 * expected).backward()
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(parts["ce"].double(), ce.detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(parts[divergence].double(), apart.detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(found, (student.grad, weight.grad), rtol=1e-4, atol=1e-5)
    assert int(parts["accuracy"]) == int(((student @ weight.t()).argmax(1) == targets).sum())
    assert list(parts) == ["ce", divergence, "accuracy"]


@pytest.mark.parametrize("autocast", [False, True])
def test_a_teacher_that_is_the_student_is_no_distance_away(inputs, autocast, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", 4 * V)
    student, weight, targets, _ = inputs
    student = student.detach().float().requires_grad_()
    options = dict(teacher=student.detach(), weight=1.0, temperature=2.0)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        total, parts = distillation_loss(student, weight.detach().float(), targets, **options)
        js = distillation_loss(student, weight.detach().float(), targets, **options, divergence="js")[1]["js"]
    total.backward()
    assert float(total) == float(parts["kl"]) == 0.0
    assert student.grad.abs().max() < 1e-6  # of p_s - p_t, made from logarithms
    assert abs(float(js)) < 1e-5 * M


def test_jensen_shannon_is_at_most_log_2(inputs):
    _, weight, targets, teacher = inputs
    far = dict(teacher=100 * teacher.float(), divergence="js")
    _, parts = distillation_loss(-100 * teacher.float(), weight.detach().float(), targets, **far)
    assert float(parts["js"]) == pytest.approx(M * torch.tensor(2.0).log().item(), rel=1e-3)


def test_without_a_share_of_the_teacher_it_is_the_cross_entropy(inputs):
    student, weight, targets, teacher = inputs
    plain, _ = chunked_cross_entropy(student.float(), weight.float(), targets)
    total, _ = distillation_loss(student.float(), weight.float(), targets, teacher=teacher.float(), weight=0.0)
    assert torch.equal(plain, total)


def test_no_gradient_reaches_the_teacher_and_nothing_large_is_kept(inputs, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", 2 * V)
    student, weight, targets, teacher = inputs
    teacher.requires_grad_()
    total, _ = distillation_loss(student.float(), weight.detach().float(), targets, teacher=teacher.float())
    assert [t.numel() for t in total.grad_fn.saved_tensors] == [M * D]
    total.backward()
    assert teacher.grad is None and student.grad is not None
    with torch.no_grad():
        assert not distillation_loss(student.float(), weight.float(), targets, teacher=teacher)[0].requires_grad


def naive_top(student, weight, teacher, k, T, divergence):
    """Position by position over the k best tokens of the teacher and one event for all others."""
    apart = 0.0
    for h, t in zip(student, teacher):
        p_s, p_t = (h @ weight.t() / T).softmax(-1), (t @ weight.detach().t() / T).softmax(-1)
        best = p_t.topk(k).indices.tolist()
        s, p = ([*(x[i] for i in best), 1 - sum(x[i] for i in best)] for x in (p_s, p_t))
        for a, b in zip(p, s):
            m = (a + b) / 2
            apart = apart + (a * (a / b).log() if divergence == "kl" else (a * (a / m).log() + b * (b / m).log()) / 2)
    return apart


@pytest.mark.parametrize("divergence", ["kl", "js"])
@pytest.mark.parametrize("k, T, chunk", [(1, 1.0, 5 * V), (4, 2.0, 1), (V - 1, 0.8, 2**24)])
def test_the_best_tokens_of_a_teacher(inputs, divergence, k, T, chunk, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", chunk)
    student, weight, targets, teacher = inputs
    top = top_tokens(teacher.float(), weight.float(), k, T)
    total, parts = distillation_loss(
        student.float(), weight.float(), targets, teacher=top, weight=1.0, temperature=T, divergence=divergence
    )
    (3 * total).backward()
    found = student.grad, weight.grad
    student.grad = weight.grad = None
    expected = T**2 * naive_top(student, weight, teacher, k, T, divergence)
    (3 * expected).backward()
    torch.testing.assert_close(total.double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, (student.grad, weight.grad), rtol=1e-3, atol=1e-4)
    whole = distillation_loss(
        student.float(), weight.float(), targets, teacher=teacher.float(), temperature=T, divergence=divergence
    )[1]
    assert float(parts[divergence]) <= float(whole[divergence]) + 1e-5
    if k == V - 1:
        assert float(parts[divergence]) == pytest.approx(float(whole[divergence]), rel=1e-4)


def test_the_best_tokens_of_a_teacher_that_is_the_student(inputs):
    student, weight, targets, _ = inputs
    student, weight = student.detach().float(), weight.detach().float()
    top = top_tokens(student, weight, 3, 2.0)
    assert float(distillation_loss(student, weight, targets, teacher=top, temperature=2.0)[1]["kl"]) == 0.0


@pytest.mark.parametrize("k", [0, V])
def test_some_tokens_are_left_over(inputs, k):
    _, weight, _, teacher = inputs
    with pytest.raises(UserError, match=f"top_k must be from 1 to below the {V} tokens of the model, not {k}"):
        top_tokens(teacher, weight, k)

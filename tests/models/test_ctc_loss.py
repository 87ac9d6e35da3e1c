import itertools
import sys

import pytest
import torch

from moe_asr.errors import UserError
from moe_asr.models.conformer_ctc import ConformerCTC, ConformerCTCConfig
from moe_asr.models.ctc_loss import ctc_loss

TEXTS = [[1, 2], [3, 3], [], [2], [1, 1, 2]]
FRAMES = [6, 5, 4, 1, 4]


@pytest.fixture(params=["torch", "k2"])
def backend(request):
    if request.param == "k2":
        pytest.importorskip("k2", reason="k2 is not installed (tools/install_k2.sh)")
    return request.param


def padded(texts):
    tokens = torch.full((len(texts), max(map(len, texts))), 3)
    for row, text in zip(tokens, texts):
        row[: len(text)] = torch.tensor(text, dtype=torch.int64)
    return tokens, torch.tensor([len(text) for text in texts])


def random_logits(frames, num_tokens=4, seed=0):
    return torch.randn(len(frames), max(frames), num_tokens, generator=torch.Generator().manual_seed(seed))


def collapse(path):
    return [token for token, _ in itertools.groupby(path) if token != 0]


def test_sum_over_all_alignments(backend):
    log_probs, frames = random_logits(FRAMES).log_softmax(2), torch.tensor(FRAMES)
    loss, fits = ctc_loss(log_probs, frames, *padded(TEXTS), backend=backend)
    with torch.inference_mode():
        again, _ = ctc_loss(random_logits(FRAMES).log_softmax(2), frames, *padded(TEXTS), backend=backend)
        assert torch.equal(again, loss)
    for value, row, n, text in zip(loss, log_probs.double(), FRAMES, TEXTS):
        paths = [p for p in itertools.product(range(4), repeat=n) if collapse(p) == text]
        total = torch.stack([row[range(n), list(p)].sum() for p in paths]).logsumexp(0)
        assert value.item() == pytest.approx(-total.item(), rel=1e-5)
    assert fits.all() and loss.dtype == torch.float32


def test_what_does_not_fit_has_no_loss_and_no_gradient(backend):
    frames = torch.tensor([3, 2, 0, 0, 5])
    logits = random_logits([5] * 5).requires_grad_()
    loss, fits = ctc_loss(logits.log_softmax(2), frames, *padded([[1, 1, 2], [1, 1], [], [1], [1]]), backend=backend)
    assert fits.tolist() == [False, False, True, False, True]
    assert (loss != 0).tolist() == [False, False, False, False, True] and loss.isfinite().all()
    loss.sum().backward()
    assert (logits.grad.flatten(1) != 0).any(1).tolist() == [False, False, False, False, True]
    assert logits.grad.isfinite().all()


def test_a_batch_in_which_nothing_fits_can_go_backward(backend):
    logits = random_logits([2, 1]).requires_grad_()
    loss, fits = ctc_loss(logits.log_softmax(2), torch.tensor([2, 1]), *padded([[1, 1], [1, 2]]), backend=backend)
    loss.sum().backward()
    assert not fits.any() and loss.tolist() == [0, 0] and not logits.grad.any()


def test_k2_equals_torch_in_value_and_gradient():
    pytest.importorskip("k2", reason="k2 is not installed (tools/install_k2.sh)")
    generator = torch.Generator().manual_seed(1)
    frames = [90, 12, 60, 90, 37]
    texts = [torch.randint(1, 30, (n,), generator=generator).tolist() for n in (20, 5, 15, 40, 1)]
    texts[2][3] = texts[2][4]
    grads, losses = [], []
    for backend in ("torch", "k2"):
        logits = (3 * random_logits(frames, 30)).requires_grad_()
        loss, _ = ctc_loss(logits.log_softmax(2), torch.tensor(frames), *padded(texts), backend=backend)
        (loss * torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0])).sum().backward()
        losses.append(loss.detach())
        grads.append(logits.grad)
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-3, atol=1e-5)
    assert all(not grad[row, n:].any() for grad in grads for row, n in enumerate(frames)), "padding has a gradient"


def test_a_recogniser_takes_its_backend_from_its_configuration(tiny, make_batch, make_targets):
    pytest.importorskip("k2", reason="k2 is not installed (tools/install_k2.sh)")
    x, lengths, _ = make_batch([40, 33, 12])
    targets = make_targets([[1, 2, 3], [3, 3], [2, 1, 1, 2, 1]])
    losses = []
    for backend in ("torch", "k2"):
        torch.manual_seed(0)
        model = ConformerCTC(ConformerCTCConfig(tiny, vocab_size=4, ctc_backend=backend)).eval()
        losses.append(model(x, lengths, targets))
    torch.testing.assert_close(losses[1].total, losses[0].total)
    assert losses[1].count == losses[0].count == 5 and losses[1].parts == losses[0].parts


def test_without_k2_the_message_says_how_to_get_it(monkeypatch, tiny, make_batch, make_targets):
    monkeypatch.setitem(sys.modules, "k2", None)
    model = ConformerCTC(ConformerCTCConfig(tiny, vocab_size=4, ctc_backend="k2"))
    x, lengths, _ = make_batch([20])
    with pytest.raises(UserError, match=r"ctc_backend k2 needs k2 \(.*\): run tools/install_k2.sh, or take"):
        model(x, lengths, make_targets([[1]]))

import itertools
import re

import pytest
import torch

from moe_asr.errors import UserError
from moe_asr.models.conformer_ctc import ConformerCTC, ConformerCTCConfig
from moe_asr.models.ctc_loss import required_frames


@pytest.fixture
def model(tiny):
    torch.manual_seed(0)
    return ConformerCTC(ConformerCTCConfig(tiny, vocab_size=4)).eval()


def collapse(path):
    return [token for token, _ in itertools.groupby(path) if token != 0]


@torch.no_grad()
def test_loss_is_minus_log_of_the_summed_alignments(model, make_batch, make_targets):
    x, lengths, _ = make_batch([19, 13, 5])
    texts = [[1, 1], [3, 2], [2]]
    log_probs, frames = model.log_probs(x, lengths)
    expected = 0.0
    for row, n, text in zip(log_probs.double(), frames, texts):
        paths = [p for p in itertools.product(range(4), repeat=int(n)) if collapse(p) == text]
        expected -= torch.stack([row[range(n), list(p)].sum() for p in paths]).logsumexp(0)
    loss = model(x, lengths, make_targets(texts))
    torch.testing.assert_close(loss.total.double(), expected, atol=1e-4, rtol=1e-5)
    assert loss.count == 5 and loss.parts["ctc_too_long"] == 0


def test_batch_equals_one_by_one_in_loss_and_gradient(model, make_batch, make_targets):
    x, lengths, utterances = make_batch([40, 33, 18, 26], longer=5)
    texts = [[1, 2, 3], [3, 3], [2], [1]]
    batch = model(x, lengths, make_targets(texts))
    together = torch.autograd.grad(batch.total, list(model.parameters()))
    losses = [model(u[None], torch.tensor([len(u)]), make_targets([t])) for u, t in zip(utterances, texts)]
    total = sum(loss.total for loss in losses)
    torch.testing.assert_close(batch.total, total)
    assert batch.count == sum(loss.count for loss in losses) == 7
    for a, b in zip(together, torch.autograd.grad(total, list(model.parameters()))):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_text_longer_than_its_frames_is_counted_and_adds_nothing(model, make_batch, make_targets):
    x, lengths, _ = make_batch([12, 8, 20])  # 3, 2 and 5 frames
    fits = model(x[2:], lengths[2:], make_targets([[1, 2]]))
    loss = model(x, lengths, make_targets([[1, 1, 2], [1, 2, 3], [1, 2]]))
    assert loss.parts["ctc_too_long"] == 6 and loss.count == 2
    torch.testing.assert_close(loss.total, fits.total)
    for a, b in zip(*(torch.autograd.grad(part.total, list(model.parameters())) for part in (loss, fits))):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_required_frames_against_shortest_path_found_by_trying():
    texts = [[1], [1, 1], [1, 2, 2, 1], [2, 2, 2], [], [1, 2, 1, 2]]
    padded = torch.full((6, 4), 2)
    for row, text in zip(padded, texts):
        row[: len(text)] = torch.tensor(text)
    found = required_frames(padded, torch.tensor([len(t) for t in texts]))
    for n, text in zip(found, texts):
        shortest = next(m for m in range(9) if any(collapse(p) == text for p in itertools.product(range(3), repeat=m)))
        assert n == shortest


def test_bf16_loss_is_float32_and_trains(model, make_batch, make_targets):
    x, lengths, _ = make_batch([40, 21])
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(x, lengths, make_targets([[1, 2], [3]]))
    assert loss.total.dtype == torch.float32
    loss.total.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_learns_a_tiny_task(tiny, make_batch, make_targets):
    torch.manual_seed(0)
    model = ConformerCTC(ConformerCTCConfig(tiny, vocab_size=4))
    x, lengths, _ = make_batch([24, 20, 28], rubbish=0.0)
    targets = make_targets([[1, 2, 3], [3, 1], [2, 2, 1]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = model(x, lengths, targets)
        optimizer.zero_grad()
        (loss.total / loss.count).backward()
        optimizer.step()
    model.eval()
    assert model(x, lengths, targets).total < 0.1
    log_probs, frames = model.log_probs(x, lengths)
    hyps = [collapse(row[:n].argmax(1).tolist()) for row, n in zip(log_probs, frames)]
    assert hyps == [[1, 2, 3], [3, 1], [2, 2, 1]]


def test_default_targets_are_linear_layers_of_the_encoder(model):
    linear = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    hit = {n for n, _ in model.named_modules() if any(re.fullmatch(t, n) for t in model.default_targets)}
    assert hit == linear - {"head"}


def test_checkpointing_switch_reaches_the_encoder(model):
    model.set_gradient_checkpointing(True)
    assert model.encoder.gradient_checkpointing


@pytest.mark.parametrize("size", [0, 1])
def test_vocabulary_without_tokens_is_refused(tiny, size):
    with pytest.raises(UserError, match="vocab_size"):
        ConformerCTC(ConformerCTCConfig(tiny, vocab_size=size))

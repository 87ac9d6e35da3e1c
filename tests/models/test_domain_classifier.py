import math

import pytest
import torch

from moe_asr.errors import UserError
from moe_asr.models.domain_classifier import AttentiveStatistics, DomainClassifier, DomainClassifierConfig
from moe_asr.models.encoders import EncoderConfig

DOMAINS = ("general", "north", "south")


@pytest.fixture
def model(tiny):
    torch.manual_seed(0)
    return DomainClassifier(DomainClassifierConfig(EncoderConfig(tiny), embedding=5, domains=DOMAINS)).eval()


@torch.no_grad()
def test_alone_equals_in_a_batch(model, make_batch):
    x, lengths, utterances = make_batch([1, 4, 17, 30], longer=6)
    posteriors, embedding = model.posteriors(x, lengths), model.embedding(x, lengths)
    assert posteriors.shape == (4, 3) and embedding.shape == (4, 5)
    torch.testing.assert_close(posteriors.sum(1), torch.ones(4))
    for p, e, utterance in zip(posteriors, embedding, utterances):
        alone = utterance[None], torch.tensor([len(utterance)])
        torch.testing.assert_close(p, model.posteriors(*alone)[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(e, model.embedding(*alone)[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_loss_and_accuracy_against_loops_with_unknown_domains_left_out(model, make_batch, make_targets):
    x, lengths, _ = make_batch([9, 12, 17, 30])
    domains = [2, -1, 0, 1]
    loss = model(x, lengths, make_targets([[1]] * 4, domains))
    total, correct = 0.0, 0
    for p, domain in zip(model.posteriors(x, lengths).tolist(), domains):
        if domain >= 0:
            total -= math.log(p[domain])
            correct += p.index(max(p)) == domain
    assert loss.total.item() == pytest.approx(total, rel=1e-5)
    assert loss.count == 3 and loss.parts["accuracy"] == correct


def test_only_unknown_domains_give_zero_and_no_nan(model, make_batch, make_targets):
    x, lengths, _ = make_batch([9, 12])
    loss = model(x, lengths, make_targets([[1]] * 2))
    loss.total.backward()
    assert loss.total == 0 and loss.count == 0
    assert all(p.grad.isfinite().all() for p in model.parameters())


@torch.no_grad()
def test_temperature(model, make_batch):
    x, lengths, _ = make_batch([9, 12])
    logits = model.logits(x, lengths)
    torch.testing.assert_close(model.posteriors(x, lengths, 4.0), (logits / 4).softmax(1))


@torch.no_grad()
def test_attentive_statistics_against_loops(make_batch):
    pooling = AttentiveStatistics(7)
    x, lengths, utterances = make_batch([1, 5, 9])
    for row, utterance in zip(pooling(x, lengths), utterances):
        scores = [math.exp(pooling.score(frame).item()) for frame in utterance]
        weights = [s / sum(scores) for s in scores]
        mean = sum(w * frame for w, frame in zip(weights, utterance))
        variance = sum(w * (frame - mean) ** 2 for w, frame in zip(weights, utterance))
        torch.testing.assert_close(row, torch.cat([mean, (variance + 1e-5).sqrt()]), atol=1e-4, rtol=1e-4)


def test_learns_which_band_is_loud(tiny, make_targets):
    torch.manual_seed(0)
    model = DomainClassifier(DomainClassifierConfig(EncoderConfig(tiny), embedding=8, domains=DOMAINS))
    domains = torch.arange(24) % 3
    x = 0.5 * torch.randn(24, 20, 7)
    x[torch.arange(24), :, domains] += 1.0
    lengths = torch.randint(8, 21, (24,))
    targets = make_targets([[1]] * 24, domains.tolist())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        loss = model(x, lengths, targets)
        (loss.total / loss.count).backward()
        optimizer.step()
    assert model.eval()(x, lengths, targets).parts["accuracy"] == 24


def test_bf16_posteriors_are_float32(model, make_batch):
    x, lengths, _ = make_batch([9, 12])
    with torch.autocast("cpu", torch.bfloat16):
        posteriors = model.posteriors(x, lengths)
    assert posteriors.dtype == torch.float32
    torch.testing.assert_close(posteriors, model.posteriors(x, lengths), atol=0.02, rtol=0)


def test_bad_domains_are_refused(tiny):
    with pytest.raises(UserError, match="twice"):
        DomainClassifierConfig(EncoderConfig(tiny), domains=("a", "a"))
    with pytest.raises(UserError, match="set its encoder, or init_encoder"):
        DomainClassifier(DomainClassifierConfig(domains=DOMAINS))
    with pytest.raises(UserError, match="two at least"):
        DomainClassifier(DomainClassifierConfig(EncoderConfig(tiny), domains=("a",)))

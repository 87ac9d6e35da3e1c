import copy

import pytest
import torch
from toy import Toy, ToyBatch, batches

from moe_asr.training.optimizer import GroupConfig, OptimConfig, build_optimizer
from moe_asr.training.update import LossSums, Updater, batch_seed


def make(model, **changes):
    optimizer = build_optimizer(model, OptimConfig())
    return Updater(model, optimizer, torch.device("cpu"), **changes)


def one_large(parts: list[ToyBatch]) -> ToyBatch:
    return ToyBatch(
        [i for b in parts for i in b.ids], torch.cat([b.x_NI for b in parts]), torch.cat([b.y_N for b in parts])
    )


@pytest.mark.parametrize("clip", [None, 0.01])
def test_uneven_batches_are_one_large_batch(clip):
    """Normalised by the summed count, not by the mean of the means."""
    parts = batches(0, dtype=torch.float64)
    results = []
    for given in (parts, [one_large(parts)]):
        model = Toy(dtype=torch.float64)
        updater = make(model, clip_grad_norm=clip)
        results.append((updater(given, 0, 0, lr=0.1), list(model.parameters())))
    (many, weights), (one, same_weights) = results
    assert many.sums.count == one.sums.count == 15
    assert many.sums.loss == pytest.approx(one.sums.loss, rel=1e-14)
    assert many.sums.means == pytest.approx(one.sums.means, rel=1e-14)
    assert many.grad_norm == pytest.approx(one.grad_norm, rel=1e-13)
    for a, b in zip(weights, same_weights, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_update_is_adamw_on_the_clipped_mean_gradient():
    batch = batches(0, dtype=torch.float64)[0]
    model, reference = Toy(dtype=torch.float64), Toy(dtype=torch.float64)
    plain = torch.optim.AdamW(
        build_optimizer(reference, OptimConfig()).param_groups, betas=(0.9, 0.98), weight_decay=0.01
    )
    updater = make(model, clip_grad_norm=0.05)
    for _ in range(3):
        update = updater([batch], 0, 0, lr=0.02)
        (reference(batch, None).total / 3).backward()
        norm = torch.cat([p.grad.flatten() for p in reference.parameters()]).norm()
        for p in reference.parameters():
            p.grad *= 0.05 / norm
        for group in plain.param_groups:
            group["lr"] = 0.02
        plain.step()
        plain.zero_grad()
        assert update.made and update.grad_norm == pytest.approx(norm.item(), rel=1e-12) and norm > 0.05
    for a, b in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


ROUTERS_FIRST = (GroupConfig("hidden", lr_factor=0.3), GroupConfig("."))  # one is `hidden`, the other the rest


@pytest.mark.parametrize("clip", [None, 0.05])
def test_groups_in_turn_are_two_adam_optimisers(clip):
    """Each with its own learning rate, its own running means and counts, and the norm of its own gradient."""
    config = OptimConfig(weight_decay=0, betas=(0.9, 0.99), groups=ROUTERS_FIRST, alternate=True)
    model, reference = Toy(dtype=torch.float64), Toy(dtype=torch.float64)
    updater = Updater(model, build_optimizer(model, config), torch.device("cpu"), clip_grad_norm=clip)
    first = list(reference.hidden.parameters())
    rest = [*reference.norm.parameters(), *reference.out.parameters()]
    both = [torch.optim.Adam(p, lr=lr, betas=(0.9, 0.99)) for p, lr in ((first, 0.3 * 0.02), (rest, 0.02))]
    for number in range(7):
        batch = batches(number, dtype=torch.float64)[0]
        turn = number % 2
        update = updater([batch], 0, number, lr=0.02, turn=turn)
        (reference(batch, None).total / 3).backward()
        active = (first, rest)[turn]
        norm = torch.cat([p.grad.flatten() for p in active]).norm().item()
        if clip:
            for p in active:
                p.grad *= clip / norm
        both[turn].step()
        reference.zero_grad()
        assert update.made and update.grad_norm == pytest.approx(norm, rel=1e-12)
        assert clip is None or norm > 1.1 * clip
        assert all(p.grad is None for p in model.parameters())
    for a, b in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_idle_groups_do_not_move():
    """Neither weights nor running means, whatever momentum they have; weight decay does not go on either."""
    model = Toy()
    optimizer = build_optimizer(model, OptimConfig(weight_decay=0.5, groups=ROUTERS_FIRST, alternate=True))
    updater = Updater(model, optimizer, torch.device("cpu"))
    for number in range(4):
        updater(batches(0)[:1], 0, number, lr=0.1, turn=number % 2)
    before = copy.deepcopy((model.state_dict(), [optimizer.state[p] for p in model.hidden.parameters()]))
    updater(batches(0)[1:2], 0, 4, lr=0.1, turn=1)
    after = model.state_dict()
    same = {name: torch.equal(value, after[name]) for name, value in before[0].items()}
    assert {name for name in same if same[name]} == {"hidden.weight", "hidden.bias", "constant"}
    assert str(before[1]) == str([optimizer.state[p] for p in model.hidden.parameters()])


def test_a_bad_gradient_of_an_idle_group_does_no_harm():
    model = Toy()

    def forward(batch, generator):
        loss = model(batch, generator)
        slope = (model.out.bias - model.out.bias.detach()).abs().sqrt().sum()  # infinite at zero, for `out` alone
        return type(loss)(loss.total + slope, loss.count, loss.parts)

    optimizer = build_optimizer(model, OptimConfig(groups=ROUTERS_FIRST, alternate=True))
    updater = Updater(forward, optimizer, torch.device("cpu"))
    assert updater(batches(0)[:1], 0, 0, lr=0.1, turn=0).made
    assert not updater(batches(0)[:1], 0, 0, lr=0.1, turn=1).made
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("where", ["loss", "gradient", "count"])
def test_an_update_that_is_not_finite_changes_nothing(where):
    model = Toy()

    def forward(batch, generator):
        loss = model(batch, generator)
        if "bad" in batch.ids and where == "loss":
            return type(loss)(loss.total * float("nan"), loss.count, loss.parts)
        if "bad" in batch.ids and where == "gradient":
            # finite in value, infinite in slope at zero
            return type(loss)(
                loss.total + (model.out.bias - model.out.bias.detach()).abs().sqrt().sum(), loss.count, {}
            )
        return type(loss)(loss.total, 0 if where == "count" else loss.count, loss.parts)

    optimizer = build_optimizer(model, OptimConfig())
    updater = Updater(forward, optimizer, torch.device("cpu"))
    good = batches(0)
    if where != "count":
        assert updater(good[:1], 0, 0, lr=0.1).made
    before = copy.deepcopy((list(model.parameters()), optimizer.state_dict()))
    bad = ToyBatch(["bad"], good[1].x_NI, good[1].y_N)
    update = updater([good[0], bad], 0, 1, lr=0.3)
    assert not update.made
    assert update.bad_batches == ((1,) if where == "loss" else (0, 1))
    after = (list(model.parameters()), optimizer.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(before[0], after[0], strict=True))
    assert all(p.grad is None for p in model.parameters())
    assert str(before[1]) == str(after[1])


def test_randomness_is_a_function_of_the_position():
    def losses(positions):
        updater = make(Toy(dropout=0.5, noise=1.0))
        return {p: updater(batches(0)[:1], *p, lr=0.0).sums.loss for p in positions}

    places = [(0, 0), (0, 1), (1, 0), (1, 1)]
    there = losses(places)
    torch.rand(7)
    assert losses(reversed(places)) == there
    assert len(set(there.values())) == 4
    assert batch_seed(1, 2, 3, "model") != batch_seed(1, 2, 3, "augmentation") != batch_seed(0, 2, 3, "augmentation")


def test_evaluation_leaves_no_trace():
    model = Toy(dropout=0.5, noise=1.0).eval()
    updater = make(model)
    state = torch.get_rng_state()
    sums = LossSums()
    for batch in batches(0):
        sums.add(updater.evaluate(batch))
    with torch.no_grad():
        whole = model(one_large(batches(0)), None)
    assert sums.loss == pytest.approx(whole.total.item() / 15, rel=1e-6)
    assert sums.means["absolute"] == pytest.approx(whole.parts["absolute"].item() / 15, rel=1e-6)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())


def test_bf16_computes_in_bf16_and_updates_in_fp32():
    model = Toy()
    seen = []
    model.hidden.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    updater = make(model, precision="bf16")
    first = updater(batches(0), 0, 0, lr=0.01)
    for step in range(1, 40):
        last = updater(batches(0), 0, 5 * step, lr=0.01)
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert last.sums.loss < 0.5 * first.sums.loss


def test_parameters_without_gradient_are_named():
    model = Toy()

    def forward(batch, generator):
        loss = model(batch, generator)
        return type(loss)((model.out.weight**2).sum(), loss.count, {})

    update = Updater(forward, build_optimizer(model, OptimConfig()), torch.device("cpu"))(batches(0), 0, 0, lr=0.1)
    assert update.made
    assert set(update.unreached) == {"hidden.weight", "hidden.bias", "norm.weight", "norm.bias", "out.bias"}
    assert make(Toy())(batches(0), 0, 0, lr=0.1).unreached == ()


def test_parts_that_only_some_batches_have():
    model = Toy()

    def forward(batch, generator):
        loss = model(batch, generator)
        return type(loss)(loss.total, loss.count, {"rare": torch.tensor(3.0)} if len(batch.ids) == 4 else {})

    update = Updater(forward, build_optimizer(model, OptimConfig()), torch.device("cpu"))(batches(0), 0, 0, lr=0.1)
    assert update.sums.parts == {"rare": 3.0} and update.sums.means == {"rare": 3.0 / 15}

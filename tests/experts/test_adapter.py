import pytest
import torch
from models import DOMAINS, LENGTHS, SPECS, E, Tower, adapted, batch

from moe_asr.errors import UserError
from moe_asr.experts import ExpertLinear, ExpertSpec, RouterSpec, attach


def test_forward_neither_unfreezes_nor_changes_mode():
    model, adapter = adapted("hdmole")
    model.eval()
    for parameter in adapter.parameters():
        parameter.requires_grad_(False)
    with adapter.route(domains=DOMAINS, lengths=LENGTHS):
        model(batch())
    assert not any(p.requires_grad for p in model.parameters()) and not any(m.training for m in model.modules())
    with pytest.raises(UserError, match="frozen"):
        adapter.check_trainable()


def test_check_trainable_refuses_an_unfrozen_base():
    model, adapter = adapted("hdmole")
    model.norm.weight.requires_grad_(True)
    with pytest.raises(UserError, match="norm.weight would be trained"):
        adapter.check_trainable()


@pytest.mark.parametrize("name", ["given", "factor"])
def test_merged_equals_fixed_weights_and_leaves_the_model_alone(name):
    model, adapter = adapted(name)
    x, weights = batch(), torch.tensor([0.2, 0.5, 0.3])
    before = {n: p.clone() for n, p in model.state_dict().items()}
    merged = adapter.merged(weights)
    assert not any(isinstance(m, ExpertLinear) for m in merged.modules())
    assert not any(p.requires_grad for p in merged.parameters())
    spec = SPECS[name]
    plain = Tower()
    given = attach(
        plain, ExpertSpec(spec.targets, E, 2, mixing=spec.mixing, router=RouterSpec(route="given", select="all"))
    )
    given.load_state_dict({n: t for n, t in adapter.state_dict().items() if ".router." not in n})
    with given.route(domains=weights.expand(3, E)):
        torch.testing.assert_close(merged(x), plain(x), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(before[n], p) for n, p in model.state_dict().items())
    with pytest.raises(UserError, match="one weight for each of the 3"):
        adapter.merged([1.0, 0.0])


def test_expert_moves_between_adapters():
    (_, one), (_, two) = adapted("given"), adapted("dense")
    two.set_expert(2, one.expert(0))
    for name, (A, B) in two.expert(2).items():
        assert torch.equal(A, one.layers[name].A[0]) and torch.equal(B, one.layers[name].B[0])
    with pytest.raises(UserError, match="rank 4"):
        two.set_expert(
            0, {n: (torch.zeros(4, a.shape[1]), torch.zeros(4, b.shape[1])) for n, (a, b) in two.expert(0).items()}
        )
    with pytest.raises(UserError, match="different layers"):
        two.set_expert(0, {})
    with pytest.raises(UserError, match="experts 0 to 2"):
        two.expert(3)


@pytest.mark.parametrize("part", ["experts", "routers", "all"])
def test_only_the_declared_part_trains(part):
    model, adapter = adapted("hdmole")
    adapter.train_only(part)
    adapter.check_trainable()
    before = {name: parameter.clone() for name, parameter in adapter.named_parameters().items()}
    optimizer = torch.optim.SGD(adapter.trained_parameters(), lr=0.1)
    posteriors = torch.tensor([[0.4, 0.3, 0.3], [0.1, 0.5, 0.4], [0.3, 0.2, 0.5]])  # of one domain alone no threshold
    with adapter.route(domains=posteriors, lengths=LENGTHS):
        model(batch()).square().sum().backward()
    optimizer.step()
    changed = {name for name, parameter in adapter.named_parameters().items() if not parameter.equal(before[name])}
    assert changed == set(adapter.named_parameters(part))
    routers = {name for name in before if ".router." in name}
    assert changed == {"experts": before.keys() - routers, "routers": routers, "all": before.keys()}[part]


def test_check_trainable_follows_the_declared_part():
    model, adapter = adapted("hdmole")
    adapter.train_only("experts")
    adapter.layers["layers.0.up"].router.local.requires_grad_(True)
    with pytest.raises(UserError, match="only the experts train"):
        adapter.check_trainable()
    adapter.train_only("experts")
    adapter.layers["layers.0.up"].A.requires_grad_(False)
    with pytest.raises(UserError, match="frozen"):
        adapter.check_trainable()
    adapter.train_only("all")
    adapter.check_trainable()
    _, given = adapted("given")
    given.train_only("experts")
    with pytest.raises(UserError, match="train_only routers: these experts have none"):
        given.train_only("routers")
    given.check_trainable()


def test_utterances_that_leave():
    model, adapter = adapted("hdmole")
    with torch.no_grad(), adapter.route(DOMAINS, LENGTHS, scale=torch.tensor([1.0, 0.5, 0.0])) as routing:
        together = model(batch())
        rows = torch.tensor([2, 0])
        adapter.narrow(rows)
        torch.testing.assert_close(model(batch()[rows]), together[rows])
        assert routing.domains_NE.shape[0] == 3  # a routing does not change; the context has another one
    assert not adapter.context.active


def test_lengths_of_a_stream_may_change_inside_route():
    model, adapter = adapted("hdmole")
    shorter = torch.tensor([2, 1, 2])
    with torch.no_grad():
        with adapter.route(DOMAINS, shorter):
            expected = model(batch(4)[:, :2])
        with adapter.route(DOMAINS, LENGTHS) as routing:
            model(batch())
            adapter.set_lengths("default", shorter)
            torch.testing.assert_close(model(batch(4)[:, :2]), expected)
            assert torch.equal(routing.lengths["default"], LENGTHS)
    adapter.set_lengths("default", shorter)
    assert not adapter.context.active


@pytest.mark.parametrize("name", ["saml", "block"])
def test_weights_of_a_block_do_not_outlive_the_batch(name):
    model, adapter = adapted(name)
    rows = torch.tensor([2, 0])
    with torch.no_grad():
        with adapter.route(DOMAINS[rows], LENGTHS[rows]):
            expected = model(batch(4)[rows])
        with adapter.route(DOMAINS, LENGTHS) as routing:
            routing.memory = batch(), torch.ones(3, 7, dtype=torch.bool)
            model(batch())
            adapter.narrow(rows)
            assert torch.equal(model(batch(4)[rows]), expected)


def test_what_routers_need():
    memory = RouterSpec(route="local", granularity="utterance", source="memory")
    prefix = RouterSpec(route="local", granularity="utterance", over="prefix")
    needs = []
    for routers in ([RouterSpec()], [memory], [prefix], [RouterSpec(), memory]):
        specs = [ExpertSpec((target,), E, router=router) for target, router in zip(("up", "q_proj"), routers)]
        adapter = attach(Tower(), specs)
        needs.append((adapter.needs_memory, adapter.needs_whole_prefix))
    assert needs == [(False, False), (True, False), (False, True), (True, False)]

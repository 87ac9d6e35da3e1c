import copy

import pytest
import torch
from models import DOMAINS, LENGTHS, SPECS, E, Tower, adapted, batch, fill
from torch import nn

from moe_asr.errors import UserError
from moe_asr.experts import ExpertLinear, ExpertSpec, RouterSpec, attach, base_identity

every_spec = pytest.mark.parametrize("name", SPECS)


@every_spec
def test_fresh_bank_and_disabled_equal_base_bit_for_bit(name):
    base, x = Tower(), batch()
    model, adapter = adapted(name, filled=False)
    with adapter.route(domains=DOMAINS, lengths=LENGTHS):
        assert torch.equal(model(x), base(x))
        fill(adapter)
        assert not torch.equal(model(x), base(x))
        with adapter.disabled():
            assert torch.equal(model(x), base(x))
        assert not torch.equal(model(x), base(x))


@every_spec
def test_mixed_batch_equals_one_by_one(name):
    # In double precision, so that the bound can be tight: what leaks between utterances is not rounding.
    model = Tower().double()
    adapter = attach(model, SPECS[name])
    fill(adapter)
    x = batch().double()
    for train in (True, False):
        model.train(train)
        with torch.set_grad_enabled(train):
            with adapter.route(domains=DOMAINS, lengths=LENGTHS):
                together = model(x)
            for n, length in enumerate(LENGTHS.tolist()):
                with adapter.route(domains=DOMAINS[n : n + 1], lengths=LENGTHS[n : n + 1]):
                    alone = model(x[n : n + 1, :length])
                torch.testing.assert_close(together[n, :length], alone[0], rtol=1e-9, atol=1e-9)


@every_spec
def test_base_keeps_its_bytes_and_only_experts_get_gradient(name, tmp_path):
    model, adapter = adapted(name)
    before = base_identity(Tower())
    assert base_identity(model) == before
    adapter.check_trainable()
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=0.1)
    for _ in range(3):
        with adapter.route(domains=DOMAINS, lengths=LENGTHS):
            loss = (model(batch()) ** 2).mean()
        loss.backward()
        assert all(
            p.grad is None for n, p in model.named_parameters() if id(p) not in set(map(id, adapter.parameters()))
        )
        assert all(p.grad is not None for p in adapter.parameters())
        optimizer.step()
        model.eval()
        with torch.no_grad(), adapter.route(domains=DOMAINS, lengths=LENGTHS), adapter.disabled():
            model(batch())
        model.train()
    adapter.check_trainable()
    assert base_identity(model) == before
    assert base_identity(adapter.detach()) == before
    assert not any(isinstance(m, ExpertLinear) for m in model.modules())


@pytest.mark.parametrize("frames", [4, 40])
@pytest.mark.parametrize("domains", [DOMAINS, torch.tensor([1, 1, 1]), torch.tensor([0, 2, 2]),
                                     torch.tensor([[0.1, 0.2, 0.7], [0.0, 1.0, 0.0], [0.4, 0.6, 0.0]])])  # fmt: skip
def test_inference_shortcuts_equal_training_path(frames, domains):
    # Without gradients long utterances are merged one by one and idle experts dropped; the result must not show it.
    model, adapter = adapted("given")
    x = torch.randn(3, frames, 12, generator=torch.Generator().manual_seed(0))
    with adapter.route(domains=domains):
        expected = model(x)
        with torch.no_grad():
            torch.testing.assert_close(model.eval()(x), expected, rtol=1e-4, atol=1e-5)


def test_idle_experts_have_zero_gradient():
    model, adapter = adapted("given")
    with adapter.route(domains=torch.tensor([1, 1, 1])):
        (model(batch()) * batch(5)).sum().backward()
    for layer in adapter.layers.values():
        assert layer.A.grad[1].abs().max() > 0 and layer.A.grad[[0, 2]].abs().max() == 0
        assert layer.B.grad[1].abs().max() > 0 and layer.B.grad[[0, 2]].abs().max() == 0


def test_all_experts_scaled_away_is_the_base():
    base, (model, adapter) = Tower(), adapted("given")
    x = batch()
    with adapter.route(domains=DOMAINS, scale=torch.tensor([0.0, 1.0, 0.0])):
        y = model(x)
    torch.testing.assert_close(y[[0, 2]], base(x)[[0, 2]], rtol=1e-6, atol=1e-6)
    assert (y[1] - base(x)[1]).abs().max() > 1e-2
    with adapter.route(domains=DOMAINS, scale=torch.zeros(3)):
        assert torch.equal(model(x), base(x))


def test_block_scope_shares_weights_and_starts_anew_each_pass():
    model, adapter = adapted("block")
    assert set(adapter.routers) == {"layers.0.group0", "layers.1.group0"}
    seen = []
    for name, layer in adapter.layers.items():
        layer.register_forward_hook(lambda m, args, y: seen.append((m.name, m.context.routing.shared[m.block].gates)))
    with adapter.route(domains=DOMAINS, lengths=LENGTHS):
        model(batch(1))
        model(batch(2))
    gates = {(i // 4, name): g for i, (name, g) in enumerate(seen)}
    assert gates[0, "layers.0.q_proj"] is gates[0, "layers.0.k_proj"]
    assert gates[0, "layers.0.q_proj"] is not gates[0, "layers.1.q_proj"]
    assert not torch.equal(gates[0, "layers.0.q_proj"], gates[1, "layers.0.q_proj"])


def test_block_scope_needs_one_shape_and_a_routing():
    model = Tower()
    adapter = attach(model, ExpertSpec(("q_proj", "k_proj"), E, 2, router=RouterSpec(route="local", scope="block")))
    with pytest.raises(UserError, match="adapter.route"):
        model(batch())
    q, k = adapter.layers["layers.0.q_proj"], adapter.layers["layers.0.k_proj"]
    with adapter.route(), pytest.raises(UserError, match="use router scope: layer"):
        q(torch.randn(3, 7, 12))
        k(torch.randn(3, 5, 12))


def test_nothing_piles_up_outside_of_route():
    model = Tower()
    router = RouterSpec(route="local", select="all", balance=0.1)
    adapter = attach(model, ExpertSpec(("up",), E, 2, router=router))
    for _ in range(3):
        model(batch())
    assert adapter.routing.balance == []
    with adapter.route() as routing:
        model(batch())
        assert len(routing.balance) == 2
        adapter.merged([1.0, 0.0, 0.0])  # a copy of the model, not of the graphs of this batch


def test_idle_batch_trains_with_zero_gradients():
    model, adapter = adapted("given")
    with adapter.route(domains=DOMAINS, scale=torch.zeros(3)):
        model(batch()).sum().backward()
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in adapter.parameters())


def test_model_in_bfloat16_after_attach():
    model, adapter = adapted("hdmole")
    x = batch()
    with torch.no_grad(), adapter.route(domains=DOMAINS, lengths=LENGTHS):
        expected = model.eval()(x)
        half = model.to(torch.bfloat16)(x.to(torch.bfloat16)).float()
    assert (half - expected).norm() / expected.norm() < 0.05


def test_a_single_frame_is_its_own_mean():
    model, adapter = adapted("hdmole")
    layer, x = adapter.layers["layers.0.q_proj"], torch.randn(3, 12)
    with adapter.route(domains=DOMAINS, lengths=torch.tensor([1, 1, 1])):
        torch.testing.assert_close(layer(x), layer(x[:, None])[:, 0])


def test_model_scope_has_one_router():
    _, adapter = adapted("model")
    assert list(adapter.routers) == ["group0"] and len({id(l.router) for l in adapter.layers.values()}) == 1
    model = Tower()
    with pytest.raises(UserError, match="one input width"):
        attach(model, ExpertSpec(("up", "down"), router=RouterSpec(scope="model")))
    assert not any(isinstance(m, ExpertLinear) for m in model.modules())  # as it was
    assert all(p.requires_grad for p in model.parameters())


def test_kind_scope_has_one_router_and_weights_for_each_block():
    model, adapter = adapted("saml")
    assert list(adapter.routers) == ["group0"] and len({id(l.router) for l in adapter.layers.values()}) == 1
    with adapter.route(lengths=LENGTHS) as routing:
        model(batch())
        first, second = (routing.shared[f"layers.{n}.group0"].gates for n in range(2))
    assert first.shape == (3, E) and not torch.allclose(first, second)


def test_memory_targets_must_be_among_the_targets():
    kind = RouterSpec(route="local", scope="kind")
    attach(Tower(), ExpertSpec(("q_proj", "k_proj"), E, router=kind, memory_targets=("k_proj",)))
    for targets, says in ((("up",), "match none"), (("kproj",), "matches no linear layer")):
        model = Tower()
        with pytest.raises(UserError, match=says):
            attach(model, ExpertSpec(("q_proj", "k_proj"), E, router=kind, memory_targets=targets))
        assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(UserError, match="scope: block or kind"):
        ExpertSpec(("q_proj",), E, memory_targets=("k_proj",))


def test_several_specs_on_one_model():
    model = Tower()
    adapter = attach(model, [ExpertSpec(("q_proj",), E, 1), ExpertSpec(("up",), E, 4, mixing="factor",
                     router=RouterSpec(granularity="utterance"))])  # fmt: skip
    assert {l.spec.rank for l in adapter.layers.values()} == {1, 4} and len(adapter.layers) == 4
    with pytest.raises(UserError, match="two specs"):
        attach(Tower(), [ExpertSpec(("q_proj",), E, 1), ExpertSpec((r".*_proj",), E, 1)])
    with pytest.raises(UserError, match="same num_experts"):
        attach(Tower(), [ExpertSpec(("q_proj",), 2, 1), ExpertSpec(("k_proj",), 3, 1)])


def test_a_layer_under_two_names_stays_one_layer():
    model = Tower()
    model.again = model.layers[0].q_proj
    adapter = attach(model, ExpertSpec(("layers.0.q_proj", "again"), E, 1))
    assert model.again is model.layers[0].q_proj and isinstance(model.again, ExpertLinear) and len(adapter.layers) == 1
    adapter.detach()
    assert type(model.again) is nn.Linear and model.again is model.layers[0].q_proj


def test_dropout_acts_on_the_experts_alone():
    model = Tower(layers=1)
    adapter = attach(model, ExpertSpec(("up",), E, 2, dropout=0.5, router=RouterSpec(route="given", select="all")))
    layer, x = adapter.layers["layers.0.up"], torch.ones(3, 7, 12)
    base = nn.Linear(12, 20)
    base.load_state_dict(layer.base.state_dict())
    with adapter.route(domains=DOMAINS):
        assert torch.equal(layer(x), base(x))  # zero bank: dropout must not touch the base's input
        fill(adapter)
        assert not torch.equal(layer(x), layer(x))
        model.eval()
        assert torch.equal(layer(x), layer(x))


def test_same_start():
    adapter = attach(Tower(), ExpertSpec(("up",), E, 2, same_start=True))
    A = adapter.layers["layers.0.up"].A
    assert torch.equal(A[0], A[2]) and A.abs().max() > 0
    assert not torch.equal(*[attach(Tower(), ExpertSpec(("up",), E, 2)).layers["layers.0.up"].A[e] for e in (0, 1)])


def test_deepcopy_keeps_its_own_context():
    model, adapter = adapted("given")
    twin = copy.deepcopy(model)
    with adapter.route(domains=DOMAINS), pytest.raises(UserError, match="adapter.route"):
        twin(batch())


@pytest.mark.parametrize(
    "targets, says",
    [
        (("q_prj",), "linear layers here are called q_proj"),
        (("norm",), "norm is a LayerNorm"),
        (("layers",), "ModuleList"),
        (("(",), "regular expression"),
        (("q_proj", "nothing_like_it"), "nothing_like_it"),
    ],
)
def test_a_pattern_that_matches_nothing_is_an_error(targets, says):
    model = Tower()
    with pytest.raises(UserError, match=says):
        attach(model, ExpertSpec(targets))
    assert not any(isinstance(m, ExpertLinear) for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())  # refused before anything was touched


def test_bad_specs():
    with pytest.raises(UserError, match="experts already"):
        attach(adapted("given")[0], SPECS["given"])
    for options in (dict(num_experts=0), dict(rank=0), dict(dropout=1.0), dict(mixing="factor"), dict(targets=())):
        with pytest.raises(UserError, match="experts: "):
            ExpertSpec(**{"targets": ("up",), **options})
    with pytest.raises(UserError, match="no experts given"):
        attach(Tower(), [])

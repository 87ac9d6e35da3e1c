import pytest
import torch
from models import E, Tower, fill

from moe_asr.errors import UserError
from moe_asr.experts import (
    ExpertLinear,
    ExpertSpec,
    RouterSpec,
    RoutingStatistics,
    attach,
    base_identity,
    load_adapter,
    save_adapter,
    stack_adapters,
)

TARGETS = ("q_proj", "k_proj")
LOCAL = dict(route="local", select="all", granularity="utterance", pooling="attention")
SPECS = {
    "saml": ExpertSpec(TARGETS, E, 1, mixing="factor", router=RouterSpec(**LOCAL, bias=True, scope="kind")),
    "prefix": ExpertSpec(TARGETS, E, 2, mixing="factor", router=RouterSpec(**LOCAL, over="prefix", scope="kind")),
    "memory": ExpertSpec(TARGETS, E, 2, mixing="factor", router=RouterSpec(**LOCAL, source="memory", scope="kind")),
    "both": ExpertSpec(TARGETS, E, 2, router=RouterSpec(**LOCAL, source="both", scope="block")),
    "hdmole": ExpertSpec(TARGETS, E, 2),
    "lora": ExpertSpec(TARGETS, 1, 4, router=RouterSpec(route="given", select="all")),
    "factor_lora": ExpertSpec(TARGETS, 1, 4, mixing="factor", router=RouterSpec(route="given", select="all")),
}
every_spec = pytest.mark.parametrize("name", SPECS)
LENGTHS = torch.tensor([7, 3, 5, 6])
MEMBERS = torch.tensor([2, 0, 2, 1])


def batch():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(4, 7, 12, generator=generator).double(), torch.randn(4, 9, 12, generator=generator).double()


def folders(tmp_path, name, members=3):
    made = []
    for seed in range(members):
        adapter = attach(Tower().double(), SPECS[name])
        fill(adapter, seed)
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter.mul_(5)
        made.append(tmp_path / str(seed))
        save_adapter(adapter, made[-1])
    return made


def domains(name, rows=slice(None)):
    experts = SPECS[name].num_experts
    return torch.rand(4, experts, generator=torch.Generator().manual_seed(4)).softmax(-1)[rows].double()


def run(model, adapter, name, rows=slice(None), **options):
    x, memory = batch()
    x, memory, lengths = x[rows], memory[rows], LENGTHS[rows]
    x = x[:, : int(lengths.max())]
    with adapter.route(domains(name, rows), lengths, **options) as routing:
        routing.memory = memory, torch.arange(9) < lengths[:, None]
        return model(x)


@every_spec
@pytest.mark.parametrize("train", [True, False])
def test_mixed_batch_equals_each_with_its_own_adapter(tmp_path, name, train):
    paths = folders(tmp_path, name)
    model = Tower().double()
    stack = stack_adapters(model, paths)
    model.train(train)
    with torch.set_grad_enabled(train):
        together = run(model, stack, name, members=MEMBERS)
        others = run(model, stack, name, members=torch.zeros(4, dtype=torch.long))
        assert not torch.allclose(others[0], together[0])
        for n, member in enumerate(MEMBERS.tolist()):
            own = Tower().double().train(train)
            alone = run(own, load_adapter(own, paths[member]), name, slice(n, n + 1))
            torch.testing.assert_close(together[n, : LENGTHS[n]], alone[0], rtol=1e-9, atol=1e-9)


@every_spec
def test_gradients_go_to_the_member_that_served(tmp_path, name):
    model = Tower().double()
    stack = stack_adapters(model, folders(tmp_path, name))
    run(model, stack, name, members=torch.tensor([2, 0, 2, 0])).square().sum().backward()
    experts = SPECS[name].num_experts
    for layer in stack.layers.values():
        for parameter in (layer.A, layer.B):
            served = parameter.grad.unflatten(0, (3, experts)).abs().amax((1, 2, 3))
            assert served[0] > 0 and served[2] > 0 and served[1] == 0
    for router in stack.routers.values():
        assert all(p.grad is None for p in router.members[1].parameters())
        assert all(p.grad is not None for p in router.members[2].parameters())


def test_the_base_is_there_once_and_kept(tmp_path):
    model = Tower().double()
    before = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    stack = stack_adapters(model, folders(tmp_path, "saml"))
    assert base_identity(model) == base_identity(Tower().double())
    own = {id(parameter) for parameter in stack.parameters()}
    base = [parameter for parameter in model.parameters() if id(parameter) not in own]
    assert {parameter.data_ptr() for parameter in base} == set(before.values())


def test_utterances_that_leave_take_their_member_along(tmp_path):
    model = Tower().double()
    stack = stack_adapters(model, folders(tmp_path, "memory"))
    together = run(model, stack, "memory", members=MEMBERS)
    rows = torch.tensor([3, 0])
    x, memory = batch()
    with stack.route(domains("memory"), LENGTHS, members=MEMBERS) as routing:
        routing.memory = memory, torch.arange(9) < LENGTHS[:, None]
        torch.testing.assert_close(model(x), together)
        stack.narrow(rows)
        assert stack.routing.members_N.tolist() == [1, 2]
        torch.testing.assert_close(model(x[rows]), together[rows])
        stack.routing.shared.clear()
        torch.testing.assert_close(model(x[rows]), together[rows])


def test_statistics_are_of_the_own_experts(tmp_path):
    model = Tower().double()
    stack = stack_adapters(model, folders(tmp_path, "saml"))
    statistics = RoutingStatistics(["a", "b", "c"])
    run(model, stack, "saml", members=MEMBERS, statistics=statistics, labels=MEMBERS)
    for layer in statistics.layers:
        mean = statistics.mean_weights(layer)
        assert mean.shape == (3, E)
        torch.testing.assert_close(mean.sum(-1), torch.ones(3).double())


def test_one_folder_is_a_plain_adapter(tmp_path):
    paths = folders(tmp_path, "saml", 1)
    model = Tower().double()
    stack = stack_adapters(model, paths)
    assert stack.members == 1
    save_adapter(stack, tmp_path / "again")


def test_what_does_not_go_together_is_refused_and_leaves_the_model_alone(tmp_path):
    def refused(paths, says):
        model = Tower().double()
        with pytest.raises(UserError, match=says) as error:
            stack_adapters(model, paths)
        assert "\n" not in str(error.value)
        assert not any(isinstance(module, ExpertLinear) for module in model.modules())
        assert all(parameter.requires_grad for parameter in model.parameters())

    saml, hdmole = folders(tmp_path / "saml", "saml"), folders(tmp_path / "hdmole", "hdmole")
    refused([], "no adapters")
    refused([saml[0], hdmole[0]], "different specs")
    refused([saml[0], tmp_path / "none"], "no adapter in")
    other = attach(Tower(seed=1).double(), SPECS["saml"])
    save_adapter(other, tmp_path / "other")
    refused([saml[0], tmp_path / "other"], "another base")
    single = attach(Tower().double(), SPECS["saml"])
    single.layers["layers.0.q_proj"].A.data = torch.zeros(E, 2, 12).double()
    save_adapter(single, tmp_path / "wide")
    refused([saml[0], tmp_path / "wide"], "layers.0.q_proj.A differs")


def test_members_must_be_named(tmp_path):
    model = Tower().double()
    stack = stack_adapters(model, folders(tmp_path, "saml"))
    with pytest.raises(UserError, match="none is named"):
        run(model, stack, "saml")
    with pytest.raises(UserError, match="2 are named"):
        run(model, stack, "saml", members=torch.tensor([0, 1]))
    with pytest.raises(UserError, match="adapters 0 to 2"):
        run(model, stack, "saml", members=torch.tensor([0, 1, 2, 3]))
    for refused in (lambda: stack.expert(0), lambda: stack.merged([1.0, 0, 0]), lambda: save_adapter(stack, tmp_path)):
        with pytest.raises(UserError, match="3 adapters are stacked"):
            refused()

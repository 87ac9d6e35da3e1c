import pytest
import torch
from models import DOMAINS, LENGTHS, SPECS, E, Tower, adapted, batch, fill

from moe_asr.errors import UserError
from moe_asr.experts import ExpertSpec, RouterSpec, RoutingStatistics, attach, base_identity, load_adapter, save_adapter
from moe_asr.experts.prune import choose_experts, prune_experts

SAML = RouterSpec(route="local", select="all", granularity="utterance", pooling="attention", bias=True, scope="kind")
LOCAL = {
    "dense": SPECS["dense"],
    "saml": ExpertSpec(("q_proj", "k_proj"), E, 1, mixing="factor", router=SAML),
}


def trained(name="saml"):
    model = Tower()
    adapter = attach(model, [LOCAL[name], ExpertSpec(("up",), E, 2, router=RouterSpec(route="local", select="all"))]
                     if name == "saml" else LOCAL[name])  # fmt: skip
    fill(adapter)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.mul_(2)
    return model, adapter


def statistics_of(model, adapter):
    statistics = RoutingStatistics(["a"])  # most utterances are of no known domain
    with torch.no_grad(), adapter.route(lengths=LENGTHS, statistics=statistics, labels=torch.tensor([0, -1, -1])):
        model(batch())
    return statistics


def gates(model, adapter):
    seen = {}
    for name, layer in adapter.layers.items():
        own = layer.gates
        layer.gates = lambda *a, own=own, name=name, **k: seen.setdefault(name, own(*a, **k))
    with torch.no_grad(), adapter.route(lengths=LENGTHS):
        model(batch())
    for layer in adapter.layers.values():
        del layer.gates
    return seen


@pytest.mark.parametrize("name", LOCAL)
@pytest.mark.parametrize("drop", [0, 1, 2])
def test_keeps_the_largest_means_and_renormalises(name, drop):
    model, adapter = trained(name)
    before, statistics = gates(model, adapter), statistics_of(model, adapter)
    kept = choose_experts(adapter, statistics, drop)
    for key, router in adapter.routers.items():
        means = []
        for layer_name, layer in adapter.layers.items():
            if layer.router is router:
                w = before[layer_name]
                frames = [w[n, :length] if w.dim() == 3 else w[n, None] for n, length in enumerate(LENGTHS.tolist())]
                means.append(torch.cat(frames).double().mean(0))
        mean_E = sum(means) / len(means)
        assert len(kept[key]) == E - drop and kept[key] == sorted(kept[key])
        dropped = [e for e in range(E) if e not in kept[key]]
        assert not dropped or mean_E[dropped].max() <= mean_E[kept[key]].min()
    first = next(iter(adapter.layers))  # its input does not depend on other experts
    experts = {layer: (adapter.layers[layer].A.clone(), adapter.layers[layer].B.clone()) for layer in adapter.layers}
    key_of = {n: next(k for k, r in adapter.routers.items() if r is l.router) for n, l in adapter.layers.items()}
    pruned = prune_experts(adapter, kept)
    after = gates(model, pruned)
    w = before[first][..., kept[key_of[first]]]
    torch.testing.assert_close(after[first], w / w.sum(-1, keepdim=True))
    assert pruned.num_experts == E - drop
    for layer, (A, B) in experts.items():
        assert torch.equal(pruned.layers[layer].A, A[kept[key_of[layer]]])
        assert torch.equal(pruned.layers[layer].B, B[kept[key_of[layer]]])
    pruned.check_trainable()
    assert base_identity(model) == base_identity(Tower())


def test_routers_choose_for_themselves():
    model, adapter = trained("saml")
    with torch.no_grad():
        adapter.routers["group0"].local_bias.copy_(torch.tensor([-30.0, 0.0, 0.0]))
        adapter.routers["layers.0.up"].local.zero_()
    kept = choose_experts(adapter, statistics_of(model, adapter), 1)
    assert kept["group0"] == [1, 2]
    assert kept["layers.0.up"] == [0, 1]  # all equal: the last goes


def test_nothing_dropped_changes_nothing():
    model, adapter = trained()
    with adapter.route(lengths=LENGTHS):
        before = model(batch())
    pruned = prune_experts(adapter, {key: list(range(E)) for key in adapter.routers})
    with pruned.route(lengths=LENGTHS):
        assert torch.equal(model(batch()), before)


def test_a_pruned_adapter_is_a_normal_one(tmp_path):
    model, adapter = trained()
    pruned = prune_experts(adapter, choose_experts(adapter, statistics_of(model, adapter), 2))
    save_adapter(pruned, tmp_path / "a")
    again = Tower()
    loaded = load_adapter(again, tmp_path / "a")
    assert loaded.num_experts == 1 and loaded.num_parameters() < trained()[1].num_parameters()
    with pruned.route(lengths=LENGTHS), loaded.route(lengths=LENGTHS):
        assert torch.equal(model(batch()), again(batch()))


def test_refused():
    model, adapter = trained()
    statistics = statistics_of(model, adapter)
    for drop in (-1, E):
        with pytest.raises(UserError, match="drop from 0 to 2"):
            choose_experts(adapter, statistics, drop)
    with pytest.raises(UserError, match="no weights of layer"):
        choose_experts(adapter, RoutingStatistics([]), 1)
    for name in ("hdmole", "given", "topk", "adamole"):
        _, other = adapted(name)
        with pytest.raises(UserError, match="dense local router"):
            prune_experts(other, {key: [0] for key in other.routers})
        with other.route(domains=DOMAINS, lengths=LENGTHS):
            other.model(batch())  # still there

import json

import pytest
import torch
from models import E, Tower, fill

from moe_asr.experts import ExpertSpec, RouterSpec, RoutingStatistics, attach

LENGTHS, LABELS = torch.tensor([7, 3, 5]), torch.tensor([0, 2, 0])


def remember(seen, layer, x):
    routing = layer.context.routing
    seen[layer.name] = layer.router(x, routing.mask("default", x.shape[1]), routing)


def collect(router):
    model = Tower()
    adapter = attach(model, ExpertSpec(("up",), E, 2, router=router))
    fill(adapter)
    statistics, seen = RoutingStatistics(["a", "b", "c"]), {}
    for name, layer in adapter.layers.items():
        layer.register_forward_hook(lambda m, args, y: remember(seen, m, args[0]))
    domains = torch.randn(3, E).softmax(-1)
    for start in (0, 1):  # two batches of different sizes
        cut = slice(0, 3) if start == 0 else slice(1, 2)
        seen.clear()
        x = torch.randn(3, 7, 12, generator=torch.Generator().manual_seed(start))[cut]
        with adapter.route(domains[cut], LENGTHS[cut], statistics=statistics, labels=LABELS[cut]):
            model(x)
        yield statistics, dict(seen), cut


@pytest.mark.parametrize("router", [RouterSpec(), RouterSpec(route="given", select="topk", top_k=1)])
def test_equals_naive_sums(router):
    weights, active = {}, {}
    for statistics, seen, cut in collect(router):
        for layer, gates in seen.items():
            for gates_E, length, label in zip(gates, LENGTHS[cut].tolist(), LABELS[cut].tolist()):
                frames = gates_E[:length] if gates.dim() == 3 else gates_E[None]
                weights.setdefault((layer, label), []).extend(frames)
                active.setdefault(layer, []).extend((frames > 0).sum(-1).tolist())
    assert set(statistics.layers) == {"layers.0.up", "layers.1.up"}
    for layer in statistics.layers:
        mean = statistics.mean_weights(layer)
        for label in (0, 2):
            expected = torch.stack(weights[layer, label]).mean(0)
            torch.testing.assert_close(mean[label], expected.double(), rtol=1e-5, atol=1e-6)
        assert mean[1].isnan().all() and statistics.summary()["layers"][layer]["mean_weights"][1] is None
        assert statistics.active_experts(layer) == pytest.approx(sum(active[layer]) / len(active[layer]))
    again = RoutingStatistics(statistics.domains)
    again.add(json.loads(json.dumps(statistics.state())))
    assert again.summary() == statistics.summary()
    again.add(statistics.state())
    assert again.summary()["layers"] == statistics.summary()["layers"]  # twice the sums, the same means
    summary = statistics.summary()
    assert summary["domains"] == ["a", "b", "c"] and set(summary["layers"]) == set(statistics.layers)
    assert 1 <= summary["mean_active_experts"] <= E


@pytest.mark.parametrize("router", [RouterSpec(), RouterSpec(threshold_over="frame"), RouterSpec(threshold="learned"),
                                    RouterSpec(select="sparsegen"), RouterSpec(route="local", granularity="utterance"),
                                    RouterSpec(route="given")])  # fmt: skip
def test_thresholds_equal_naive_means(router):
    model = Tower()
    adapter = attach(model, ExpertSpec(("q_proj",), E, 2, router=router))
    fill(adapter)
    statistics, again, seen = RoutingStatistics([]), RoutingStatistics([]), {}
    for name, layer in adapter.layers.items():
        layer.register_forward_hook(lambda m, args, y: seen.setdefault(m.name, []).append(args[0]))
    for number in range(2):
        x = torch.randn(3, 7, 12, generator=torch.Generator().manual_seed(number))
        part = RoutingStatistics([])
        for counted in (statistics, part):
            with adapter.route(torch.eye(3), LENGTHS, statistics=counted):
                model(x)
        again.add(json.loads(json.dumps(part.state())))
    for name, layer in adapter.layers.items():
        expected = {}
        for x in seen[name][::2]:  # each batch was counted twice, by the whole and by its part
            for frames, length in zip(x, LENGTHS.tolist()):
                for route in {"given": ("global",), "local": ("local",)}.get(router.route, ("global", "local")):
                    each = getattr(router, {"global": "threshold_over", "local": "granularity"}[route]) == "frame"
                    vectors = frames[:length] if each else frames[:length].mean(0, keepdim=True)
                    v = getattr(layer.router, f"threshold_{route}", torch.zeros(1, 12))
                    logits = vectors @ v[0] + getattr(layer.router, f"threshold_{route}_bias")
                    expected.setdefault(route, []).extend(logits.sigmoid().tolist())
        means = {route: sum(values) / len(values) for route, values in expected.items()}
        assert statistics.thresholds(name) == pytest.approx(means, rel=1e-5)
        assert again.thresholds(name) == pytest.approx(means, rel=1e-5)
        assert again.summary()["layers"][name]["thresholds"] == again.thresholds(name)


def test_sums_without_thresholds_are_taken():
    """As older versions wrote them."""
    statistics, old = RoutingStatistics(["a"]), RoutingStatistics(["a"])
    statistics.update("l", torch.tensor([[0.75, 0.25]]), None, torch.tensor([0]))
    old.add({layer: sums[:3] for layer, sums in statistics.state().items()})
    assert old.summary() == statistics.summary()


def test_fixed_thresholds_and_layers_without_a_router_of_their_own_have_none():
    for router, first in ((RouterSpec(threshold="fixed"), set()), (RouterSpec(scope="block"), {"local", "global"})):
        model, statistics = Tower(layers=1), RoutingStatistics([])
        adapter = attach(model, ExpertSpec(("q_proj", "k_proj"), E, 2, router=router))
        with adapter.route(torch.eye(3), LENGTHS, statistics=statistics):
            model(torch.randn(3, 7, 12))
        assert set(statistics.thresholds("layers.0.q_proj")) == first
        assert statistics.thresholds("layers.0.k_proj") == {}


def test_unknown_domains_count_for_the_total_only():
    statistics = RoutingStatistics(["a"])
    statistics.update("l", torch.tensor([[1.0, 0.0], [0.5, 0.5]]), None, torch.tensor([0, -1]))
    assert statistics.mean_weights("l").tolist() == [[1.0, 0.0]] and statistics.active_experts("l") == 1.5
    assert RoutingStatistics([]).summary()["mean_active_experts"] is None

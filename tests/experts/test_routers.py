from dataclasses import replace

import pytest
import reference
import torch

from moe_asr.errors import UserError
from moe_asr.experts.context import Routing, make_routing
from moe_asr.experts.routers import Router, RouterSpec, balance_term

N, T, I, E = 3, 6, 8, 4
LENGTHS = torch.tensor([6, 2, 4])


def setup(seed=0, **options):
    torch.manual_seed(seed)
    router = Router(RouterSpec(**options), E, I, dtype=torch.double)
    for parameter in router.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(N, T, I, dtype=torch.double)
    domains = torch.randn(N, E, dtype=torch.double).softmax(-1)
    routing = make_routing(E, domains=domains, lengths=LENGTHS)
    routing.memory = torch.randn(N, T, I, dtype=torch.double), routing.mask("default", T)
    return router, x, routing


def run(router, x, routing):
    return router(x, routing.mask("default", x.shape[1]), routing)


UTTERANCE = dict(route="local", select="all", granularity="utterance")
OPTIONS = [
    dict(route="given", select="all"),
    dict(route="given", select="topk", top_k=1),
    dict(route="given", select="threshold", temperature=2.5),
    dict(route="local", select="all"),
    dict(route="local", select="all", granularity="utterance"),
    dict(route="local", select="topk", top_k=2),
    dict(route="local", select="threshold"),
    dict(route="local", select="threshold", threshold="learned"),
    dict(route="local", select="threshold", threshold="fixed", fixed_threshold=0.7, hard=True),
    dict(),
    dict(temperature=0.5),
    dict(threshold="learned"),
    dict(threshold_over="frame"),
    dict(threshold_over="frame", granularity="utterance"),
    dict(threshold_over="frame", combine="gate", temperature=2.0),
    dict(route="given", select="threshold", threshold_over="frame"),
    dict(threshold="fixed", fixed_threshold=0.9),
    dict(threshold="fixed", hard=True),
    dict(select="topk", top_k=1),
    dict(combine="sum"),
    dict(combine="gate"),
    dict(combine="product"),
    dict(combine="gate", granularity="utterance"),
    dict(granularity="utterance"),
    dict(route="local", bias=True, local_temperature=0.3),
    dict(**UTTERANCE, pooling="attention", bias=True, local_temperature=2.0),
    dict(**UTTERANCE, pooling="attention", source="memory"),
    dict(**UTTERANCE, pooling="attention", source="both", bias=True),
    dict(**UTTERANCE, pooling="attention", source="both", over="prefix"),
    dict(UTTERANCE, pooling="attention", over="prefix", select="topk", top_k=1),
    dict(**UTTERANCE, source="both"),
    dict(**UTTERANCE, over="prefix"),
    dict(granularity="utterance", source="both", pooling="attention", combine="gate", threshold="input"),
    dict(granularity="utterance", source="memory", threshold="learned", combine="product"),
]
OVER_ALL = [
    dict(**UTTERANCE, pooling=p, over="all", source=s) for p in ("mean", "attention") for s in ("layer", "both")
]


@pytest.mark.parametrize(
    "options", OPTIONS + OVER_ALL, ids=lambda o: "-".join(f"{k}={v}" for k, v in o.items()) or "hdmole"
)
def test_weights_equal_naive_loop(options):
    router, x, routing = setup(**options)
    w = run(router, x, routing)
    per_frame = w.dim() == 3
    spec = router.spec
    local_frames = spec.route != "given" and (spec.granularity == "frame" or spec.over == "prefix")
    assert per_frame == (local_frames or spec.threshold_over == "frame")
    for n in range(N):
        for t in range(int(LENGTHS[n])):
            memory, domains, length = routing.memory[0][n], routing.domains_NE[n], int(LENGTHS[n])
            expected = reference.router_weights(router, x[n], memory, domains, length, t)
            torch.testing.assert_close(w[n, t] if per_frame else w[n], expected)


@pytest.mark.parametrize("options", OPTIONS + [dict(select="sparsegen"), dict(select="sparsegen", threshold="learned"),
                                               dict(select="sparsegen", threshold_over="frame")])  # fmt: skip
def test_sum_survivors_and_gradients(options):
    router, x, routing = setup(**options)
    w = run(router, x, routing)
    total = 2.0 if router.spec.combine == "sum" and router.spec.route == "hierarchical" else 1.0
    torch.testing.assert_close(w.sum(-1), torch.full(w.shape[:-1], total, dtype=torch.double))
    assert (w >= 0).all() and (w > 0).any(-1).all()
    if list(router.parameters()):
        # Only real frames: their weights alone may train the router.
        mask = routing.mask("default", T) if w.dim() == 3 else torch.ones(N, dtype=torch.bool)
        (w[mask] * torch.randn_like(w[mask])).sum().backward()
        for name, parameter in router.named_parameters():
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("options", [dict(), dict(combine="gate"), dict(route="local"), dict(select="sparsegen"),
                                     dict(threshold="learned"), dict(granularity="utterance"),
                                     dict(threshold_over="frame"), dict(route="given", threshold_over="frame"),
                                     dict(**UTTERANCE, pooling="attention", source="both", over="prefix"),
                                     dict(**UTTERANCE, pooling="attention", source="both", bias=True)])  # fmt: skip
def test_gradcheck(options):
    router, x, routing = setup(**options)
    x.requires_grad_()
    memory = routing.memory[0].requires_grad_()

    def function(x, memory, *parameters):
        return torch.func.functional_call(
            router, dict(zip(names, parameters)), (x, routing.mask("default", T), routing)
        )

    names, parameters = zip(*[(n, p.detach().requires_grad_()) for n, p in router.named_parameters()])
    assert torch.autograd.gradcheck(function, (x, memory, *parameters))


@pytest.mark.parametrize("options", OPTIONS)
def test_padding_and_batch_mates_change_nothing(options):
    router, x, routing = setup(**options)
    together = run(router, x, routing)
    noisy = x.clone()
    for n in range(N):
        noisy[n, LENGTHS[n] :] = float("nan")
    states, mask = routing.memory
    padded = run(router, noisy, replace(routing, memory=(torch.where(mask[..., None], states, float("nan")), mask)))
    for n in range(N):
        length = int(LENGTHS[n])
        one = make_routing(E, domains=routing.domains_NE[n : n + 1], lengths=LENGTHS[n : n + 1])
        one.memory = states[n : n + 1, :length], mask[n : n + 1, :length]
        alone = run(router, x[n : n + 1, :length], one)
        cut = slice(0, length) if together.dim() == 3 else slice(None)
        torch.testing.assert_close(together[n, cut], alone[0], rtol=1e-12, atol=1e-12)
        assert torch.equal(padded[n, cut], together[n, cut])


@pytest.mark.parametrize("options", OVER_ALL)
def test_over_all_takes_no_mask_and_sees_padding(options):
    router, x, routing = setup(**options)
    together = router(x, None, replace(routing, memory=(routing.memory[0], None)))
    torch.testing.assert_close(together, run(router, x, routing), rtol=0, atol=0)
    changed = x.clone()
    changed[1, 2:] += 1
    assert not torch.allclose(run(router, changed, routing)[1], together[1])


FRAME = dict(threshold_over="frame")


@pytest.mark.parametrize("pools, options", [
    (True, dict()), (False, FRAME), (True, dict(route="given")), (False, dict(FRAME, route="given")),
    (False, dict(route="local")), (True, UTTERANCE), (True, dict(FRAME, granularity="utterance")),
    (True, dict(UTTERANCE, source="both")), (False, dict(UTTERANCE, source="memory")),
    (True, dict(granularity="utterance", source="memory")), (False, dict(threshold="learned")),
    (False, dict(FRAME, granularity="utterance", source="memory")), (False, dict(select="topk")),
])  # fmt: skip
def test_who_pools_frames_depends_on_other_frames(pools, options):
    router, x, routing = setup(**options)
    assert router.spec.pools_frames == pools
    changed = x.clone()
    changed[:, 0] += torch.arange(I)  # not by a constant alone, which the first frame's thresholds might not see
    before, after = run(router, x, routing), run(router, changed, routing)
    rest = slice(1, None) if before.dim() == 3 else slice(None)
    assert torch.equal(before[:, rest], after[:, rest]) == (not pools)


@pytest.mark.parametrize("ahead, options", [
    (True, dict()), (False, FRAME), (True, UTTERANCE), (True, dict(UTTERANCE, source="both")),
    (False, dict(UTTERANCE, over="prefix")), (False, dict(UTTERANCE, over="prefix", source="both")),
    (True, dict(UTTERANCE, over="all")), (False, dict(UTTERANCE, source="memory")), (True, dict(route="given")),
    (True, dict(granularity="utterance", over="prefix")), (False, dict(FRAME, granularity="utterance", over="prefix")),
])  # fmt: skip
def test_who_looks_ahead_depends_on_later_frames(ahead, options):
    router, x, routing = setup(**options)
    assert router.spec.looks_ahead == ahead
    changed = x.clone()
    changed[:, 1:] += torch.arange(I)
    before, after = run(router, x, routing), run(router, changed, routing)
    assert torch.equal(before[:, 0], after[:, 0]) == (not ahead)


def test_rows_are_the_routing_of_some_utterances():
    router, x, routing = setup(granularity="utterance", source="both", pooling="attention")
    routing.scale_N = torch.tensor([1.0, 0.5, 0.25], dtype=torch.double)
    rows = torch.tensor([2, 0])
    torch.testing.assert_close(run(router, x[rows], routing.rows(rows)), run(router, x, routing)[rows])


def test_utterance_scale_reaches_the_weights():
    router, x, routing = setup()
    routing.scale_N = torch.tensor([1.0, 0.0, 0.5], dtype=torch.double)
    scaled = run(router, x, routing)
    routing.scale_N = None
    torch.testing.assert_close(scaled, run(router, x, routing) * torch.tensor([1.0, 0.0, 0.5])[:, None, None])


def test_ids_are_one_hot_and_oracle_ignores_temperature():
    routing = make_routing(E, domains=torch.tensor([2, 0, 3]))
    router = Router(RouterSpec(route="given", select="all", temperature=3.0), E, I)
    assert torch.equal(router(torch.randn(N, T, I), None, routing), torch.eye(E)[[2, 0, 3]])


@pytest.mark.parametrize("options", [dict(), dict(route="given", select="threshold"), dict(select="sparsegen")])
def test_saturated_threshold_keeps_uniform_probabilities_finite(options):
    router = Router(RouterSpec(**options), E, I)
    with torch.no_grad():
        for name, parameter in router.named_parameters():
            parameter.fill_(50.0 if name.endswith("bias") else 0.0)
    routing = make_routing(E, domains=torch.full((N, E), 1 / E), lengths=LENGTHS)
    w = run(router, torch.randn(N, T, I), routing)
    torch.testing.assert_close(w, torch.full(w.shape, 1 / E))


def test_weights_need_not_sum_to_one():
    domains = torch.tensor([[0.1, 0.0, 0.1, 0.0], [2.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 5.0]])
    routing = make_routing(E, domains=domains, lengths=LENGTHS)
    given = Router(RouterSpec(route="given", select="all"), E, I)
    assert torch.equal(given(torch.randn(N, T, I), None, routing), domains)  # fusion weights may be anything
    threshold = Router(RouterSpec(route="given", select="threshold"), E, I)
    torch.testing.assert_close(run(threshold, torch.randn(N, T, I), routing).sum(-1), torch.ones(N))


def test_balance_term():
    torch.manual_seed(0)
    p = torch.randn(2, 5, 3).softmax(-1)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()
    frames = p[mask]
    share = torch.stack([(frames.argmax(-1) == e).float().mean() for e in range(3)])
    torch.testing.assert_close(balance_term(p, p, mask), 3 * (share * frames.mean(0)).sum())
    assert balance_term(torch.eye(3)[None], torch.eye(3)[None], None).item() == pytest.approx(1.0)
    router, x, routing = setup(route="local", select="all", balance=0.01)
    run(router.train(), x, routing)
    assert len(routing.balance) == 1 and routing.balance_loss().requires_grad
    run(router.eval(), x, routing)
    assert len(routing.balance) == 1
    assert Routing().balance_loss() == 0


def test_errors_say_what_to_do():
    router, x, routing = setup()
    with pytest.raises(UserError, match="lengths"):
        router(x, None, make_routing(E, domains=routing.domains_NE))
    with pytest.raises(UserError, match="adapter.route"):
        router(x, routing.mask("default", T), Routing())
    with pytest.raises(UserError, match="3 utterances, but the layer sees 6"):
        router(x.repeat(2, 1, 1), routing.mask("default", T).repeat(2, 1), routing)
    with pytest.raises(UserError, match="frame rate"):
        make_routing(E, lengths=torch.tensor([9])).mask("default", T)
    with pytest.raises(UserError, match="ids range from 0 to 4"):
        make_routing(E, domains=torch.tensor([0, 4]))
    with pytest.raises(UserError, match=r"weights \(N, 4\)"):
        make_routing(E, domains=torch.rand(2, 3))
    with pytest.raises(UserError, match="all zero"):
        make_routing(E, domains=torch.tensor([[0.0, 0.0, 0.0, 0.0]]))
    with pytest.raises(UserError, match="finite"):
        make_routing(E, domains=torch.full((2, 4), float("nan")))
    memory, x = routing.memory, x[:2]
    for source in ("memory", "both"):
        router, _, _ = setup(**UTTERANCE, source=source)
        for bad, says in ((None, "routing.memory"), (memory, "3 utterances, but the layer sees 2"),
                          ((torch.randn(2, 4, 5), torch.ones(2, 4).bool()), "memory is 5 wide")):  # fmt: skip
            with pytest.raises(UserError, match=says):
                router(x, torch.ones(2, T).bool(), Routing(memory=bad))
    bad = (dict(hard=True), dict(fixed_threshold=1.0), dict(top_k=0), dict(temperature=0.0))
    pooling = (dict(pooling="attention"), dict(over="all"), dict(source="both"), dict(source="memory", route="given"))
    of_frames = [dict(route="local"), dict(select="all"), dict(threshold="learned"), dict(threshold="fixed")]
    for options in (
        *bad,
        *pooling,
        *[dict(options, threshold_over="frame") for options in of_frames],
        dict(local_temperature=0.0),
        dict(granularity="utterance", source="memory", over="prefix"),
    ):
        with pytest.raises(UserError, match="router: "):
            RouterSpec(**options)
    with pytest.raises(UserError, match="there are 4 experts"):
        Router(RouterSpec(select="topk", top_k=5), E, I)

import math

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
    return router, x, make_routing(E, domains=domains, lengths=LENGTHS)


def run(router, x, routing):
    return router(x, routing.mask("default", x.shape[1]), routing)


def select(spec, p_E, tau_logit):
    if spec.select == "all":
        return p_E
    if spec.select == "topk":
        return reference.top_k(p_E, spec.top_k)
    level = spec.fixed_threshold if spec.threshold == "fixed" else 1 / (1 + math.exp(-tau_logit.item()))
    if spec.hard:
        return reference.hard_threshold(p_E, level / E)
    return reference.soft_threshold(p_E, level / E)


def naive(router, x_TI, g_E, frames, t):
    """Weights of one frame of one utterance."""
    spec, mean = router.spec, x_TI[:frames].mean(0)
    parts = {}
    for route, p_E, seen in (
        ("global", (g_E.log() / spec.temperature).softmax(-1), mean),
        ("local", None, mean if spec.granularity == "utterance" else x_TI[t]),
    ):
        if {"given": "global", "local": "local"}.get(spec.route, route) != route:
            continue
        if route == "local":
            p_E = (router.local @ seen).softmax(-1)
        tau = getattr(router, f"threshold_{route}_bias", torch.zeros(1))
        if hasattr(router, f"threshold_{route}"):
            tau = tau + getattr(router, f"threshold_{route}")[0] @ seen
        parts[route] = select(spec, p_E, tau)
    if len(parts) == 1:
        return next(iter(parts.values()))
    g, l = parts["global"], parts["local"]
    if spec.combine == "gate":
        a = (router.gate @ (mean if spec.granularity == "utterance" else x_TI[t])).softmax(-1)
        return a[0] * g + a[1] * l
    if spec.combine == "product":
        return g * l / (g * l).sum() if (g * l).sum() > 0 else (g + l) / 2
    return (g + l) if spec.combine == "sum" else (g + l) / 2


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
    dict(threshold="fixed", fixed_threshold=0.9),
    dict(threshold="fixed", hard=True),
    dict(select="topk", top_k=1),
    dict(combine="sum"),
    dict(combine="gate"),
    dict(combine="product"),
    dict(combine="gate", granularity="utterance"),
    dict(granularity="utterance"),
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(f"{k}={v}" for k, v in o.items()) or "hdmole")
def test_weights_equal_naive_loop(options):
    router, x, routing = setup(**options)
    w = run(router, x, routing)
    per_frame = w.dim() == 3
    assert per_frame == (router.spec.route != "given" and router.spec.granularity == "frame")
    for n in range(N):
        for t in range(int(LENGTHS[n])):
            expected = naive(router, x[n], routing.domains_NE[n], int(LENGTHS[n]), t)
            torch.testing.assert_close(w[n, t] if per_frame else w[n], expected)


@pytest.mark.parametrize("options", OPTIONS + [dict(select="sparsegen"), dict(select="sparsegen", threshold="learned")])
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
                                     dict(threshold="learned"), dict(granularity="utterance")])  # fmt: skip
def test_gradcheck(options):
    router, x, routing = setup(**options)
    x.requires_grad_()

    def function(x, *parameters):
        return torch.func.functional_call(
            router, dict(zip(names, parameters)), (x, routing.mask("default", T), routing)
        )

    names, parameters = zip(*[(n, p.detach().requires_grad_()) for n, p in router.named_parameters()])
    assert torch.autograd.gradcheck(function, (x, *parameters))


@pytest.mark.parametrize("options", OPTIONS)
def test_padding_and_batch_mates_change_nothing(options):
    router, x, routing = setup(**options)
    together = run(router, x, routing)
    noisy = x.clone()
    for n in range(N):
        noisy[n, LENGTHS[n] :] = float("nan")
    padded = run(router, noisy, routing)
    for n in range(N):
        length = int(LENGTHS[n])
        alone = run(
            router, x[n : n + 1, :length],
            make_routing(E, domains=routing.domains_NE[n : n + 1], lengths=LENGTHS[n : n + 1]),
        )  # fmt: skip
        cut = slice(0, length) if together.dim() == 3 else slice(None)
        torch.testing.assert_close(together[n, cut], alone[0], rtol=1e-12, atol=1e-12)
        assert torch.equal(padded[n, cut], together[n, cut])


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
    for options in (dict(hard=True), dict(fixed_threshold=1.0), dict(top_k=0), dict(temperature=0.0)):
        with pytest.raises(UserError, match="router: "):
            RouterSpec(**options)
    with pytest.raises(UserError, match="there are 4 experts"):
        Router(RouterSpec(select="topk", top_k=5), E, I)

"""Routes that tell languages apart: the model's own posteriors, and a router on the frozen encoder's states."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from recognisers import MODELS, batch, cut, features, fill

from moe_asr.errors import UserError
from moe_asr.experts import ExpertSpec, RouterSpec, adapter_identity, base_identity, load_adapter, stack_adapters
from moe_asr.methods.adapt import adapt, load_adapted
from moe_asr.methods.adaptation import AdaptationConfig
from moe_asr.methods.routes import RouteOptions, label_weights, language_columns, over_domains
from moe_asr.models.build import ModelConfig, build_model, complete_config

LANGUAGES = {"en": 3, "de": 4, "zh": 5, "fa": 6}
DOMAINS = ("de", "fa", "zh-CN")
KINDS = pytest.mark.parametrize("kind", ["whisper", "conformer_aed"])


def multilingual(kind, **changes):
    torch.manual_seed(0)
    config = dataclasses.replace(MODELS[kind], **changes)
    model = build_model(complete_config(ModelConfig(**{kind: config}), 20, 9, languages=LANGUAGES)).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.xavier_normal_(module.weight)
    return model


def speech(n=3):
    return dataclasses.replace(batch(n), languages=["de", "zh-CN", "fa"][:n], domains_N=torch.tensor([0, 2, 1])[:n])


def adaptation(route, **options):
    experts = ExpertSpec(("default",), 3, 2, router=RouterSpec(route="given", select="all"))
    return AdaptationConfig(experts, domains=DOMAINS, domain_key="language", global_route=route, **options)


def weights(adapted, b, **options):
    return adapted.domain_weights(b, *features(b), RouteOptions(**options))


@KINDS
@pytest.mark.parametrize("route", ["model", "router"])
def test_weights_depend_on_the_frozen_base_alone(kind, route):
    adapted = fill(adapt(multilingual(kind, **(dict(dropout=0.3) if kind == "whisper" else {})), adaptation(route)))
    b = speech()
    p_NG = weights(adapted.eval(), b)
    torch.testing.assert_close(p_NG.sum(1), torch.ones(3))
    assert torch.equal(weights(adapted.train(), b), p_NG) and adapted.recogniser.training  # no dropout in that pass
    with torch.no_grad():
        for layer in adapted.adapter.layers.values():
            layer.B.mul_(3.0)
    assert torch.equal(weights(adapted, b), p_NG)
    base = adapted.adapter.detach().eval()
    states, lengths = base.encode(*features(b))
    for n in range(3):
        if route == "model":
            row = base.language_posteriors(states, lengths)[n]
            expected = torch.stack([row[1], row[3], row[2]])
            expected = expected / expected.sum()
        else:
            mean = states[n, : lengths[n]].mean(0)
            expected = (adapted.domain_router.weight @ mean + adapted.domain_router.bias).softmax(0)
        torch.testing.assert_close(p_NG[n], expected)


@KINDS
@pytest.mark.parametrize("route", ["model", "router", "label"])
def test_a_batch_of_several_languages_equals_one_by_one(kind, route):
    adapted = fill(adapt(multilingual(kind), adaptation(route, beta=0.8))).eval().double()
    b = speech()

    features_NTF, lengths_N = features(b)

    def hidden(b, rows=slice(None)):
        lengths = lengths_N[rows]
        x = features_NTF[rows, : lengths.max()].double()
        with torch.no_grad(), adapted.route(b, lengths, adapted.domain_weights(b, x, lengths), with_texts=True):
            states, frames = adapted.recogniser.encode(x, lengths)
            text = torch.cat([adapted.recogniser.prompts(b), b.tokens_NU], 1)
            return states, adapted.recogniser.decoder(text, states, frames)

    together = hidden(b)
    for n in range(3):
        for mixed, alone in zip(together, hidden(cut(b, n), slice(n, n + 1))):
            torch.testing.assert_close(mixed[n, : alone.shape[1]], alone[0], rtol=1e-9, atol=1e-9)


@KINDS
def test_the_router_learns_by_both_losses_and_the_base_stays(kind):
    model = multilingual(kind)
    base = base_identity(model)
    adapted = fill(adapt(model, adaptation("router", router_weight=0.5))).eval()  # without dropout
    b = speech()
    x, lengths = features(b)
    loss = adapted(x, lengths, b)
    with torch.no_grad():
        p_NG = adapted.domain_weights(b, x, lengths)
        with adapted.route(b, lengths, p_NG, with_texts=True):
            plain = model(x, lengths, b)
    ce = F.cross_entropy(p_NG.log(), b.domains_N)
    torch.testing.assert_close(loss.total.detach(), plain.total + 0.5 * ce * plain.count)
    torch.testing.assert_close(loss.parts["domain"] / loss.count, ce)
    right = (p_NG.argmax(1) == b.domains_N).float().mean()
    torch.testing.assert_close(loss.parts["domain_accuracy"] / loss.count, right)
    loss.total.backward()
    gradients = {name: p.grad for name, p in adapted.named_parameters() if p.grad is not None}
    declared = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert gradients.keys() == declared and {"domain_router.weight", "domain_router.bias"} < declared
    assert all(
        p.requires_grad == (id(p) in {id(q) for q in adapted.adapter.parameters()}) for p in adapted.parameters()
    )
    without = adapt(multilingual(kind), adaptation("router", router_weight=0.0)).train()
    fill(without)(x, lengths, b).total.backward()
    assert without.domain_router.weight.grad.abs().max() > 0  # through the experts
    assert base_identity(model) == base


def test_it_starts_uniform_and_can_be_trained_alone():
    adapted = adapt(multilingual("whisper"), adaptation("router"))
    b = speech()
    torch.testing.assert_close(weights(adapted, b), torch.full((3, 3), 1 / 3))
    fill(adapted).adapter.train_only("routers")
    experts = {name: p.detach().clone() for name, p in adapted.adapter.named_parameters("experts").items()}
    optimizer = torch.optim.Adam(adapted.adapter.trained_parameters(), 0.05)
    x, lengths = features(b)
    x = x + 3 * torch.arange(-1, 2)[:, None, None] * torch.linspace(-1, 1, 20)  # languages that can be told apart
    for _ in range(60):
        optimizer.zero_grad()
        adapted(x, lengths, b).total.backward()
        optimizer.step()
    assert adapted.domain_weights(b, x, lengths).argmax(1).tolist() == [0, 2, 1]
    assert all(torch.equal(p, experts[name]) for name, p in adapted.adapter.named_parameters("experts").items())


def test_the_router_is_part_of_the_adaptation(tmp_path):
    adapted = fill(adapt(multilingual("whisper"), adaptation("router"))).eval()
    adapted.save(tmp_path / "a")
    again = load_adapted(multilingual("whisper"), tmp_path / "a")
    assert adapter_identity(again.adapter) == adapter_identity(adapted.adapter)
    assert torch.equal(weights(again, speech()), weights(adapted, speech()))
    assert again.config == dataclasses.replace(adapted.config, domain_classifier=None)
    with torch.no_grad():
        again.domain_router.bias[0] += 1
    assert adapter_identity(again.adapter) != adapter_identity(adapted.adapter)
    experts = sum(layer.A.numel() + layer.B.numel() for layer in adapted.adapter.layers.values())
    assert adapted.adapter.num_parameters() == experts + 3 * (16 + 1)
    adapted.save(tmp_path / "b")
    with pytest.raises(UserError, match="chooses among its experts for all domains; load it alone"):
        stack_adapters(multilingual("whisper"), [tmp_path / "a/adapter", tmp_path / "b/adapter"])
    assert load_adapter(multilingual("whisper"), tmp_path / "a/adapter").domain_router is not None


def test_other_routes_can_be_taken_in_decoding():
    adapted = fill(adapt(multilingual("whisper"), adaptation("router"))).eval()
    b = speech()
    assert torch.equal(weights(adapted, b, global_route="label"), torch.eye(3)[[0, 2, 1]])
    model = weights(adapted, b, global_route="model")
    assert not torch.allclose(model, weights(adapted, b), atol=1e-3)
    assert torch.equal(weights(adapted, b, global_route="model", best=True), torch.eye(3)[model.argmax(1)])


def test_weights_of_labels():
    expected = torch.tensor([[0.1, 0.8, 0.1], [0.8, 0.1, 0.1]])
    torch.testing.assert_close(label_weights(torch.tensor([1, 0]), 3, 0.8), expected)
    assert torch.equal(label_weights(torch.tensor([1, 0]), 2, 1.0), torch.eye(2)[[1, 0]])
    assert torch.equal(label_weights(torch.tensor([0]), 1, 0.5), torch.ones(1, 1))


def test_a_model_that_expects_none_of_the_domains_is_undecided():
    p = over_domains(torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.2, 0.3]]), [1, 2])
    torch.testing.assert_close(p, torch.tensor([[0.5, 0.5], [0.4, 0.6]]))


def test_bad_choices_are_one_line():
    model = multilingual("whisper")
    with pytest.raises(UserError, match="beta is the weight of the true domain, from 0 to 1, not 1.5"):
        adaptation("label", beta=1.5)
    with pytest.raises(UserError, match="router_weight must not be negative"):
        adaptation("router", router_weight=-1.0)
    with pytest.raises(UserError, match="this one has no languages"):
        adapt(build_model(ModelConfig(whisper=MODELS["whisper"])), adaptation("model"))
    with pytest.raises(UserError, match="the model has no token for the domain eo; it knows en, de, zh, fa"):
        adapt(model, dataclasses.replace(adaptation("model"), domains=("de", "eo", "zh")))
    with pytest.raises(UserError, match="two of the domains zh-CN, de, zh are one language"):
        language_columns(LANGUAGES, ("zh-CN", "de", "zh"))
    one = dataclasses.replace(adaptation("router"), experts=dataclasses.replace(adaptation("x").experts, num_experts=1))
    with pytest.raises(UserError, match="global_route router is for several experts"):
        adapt(model, one)
    adapted = adapt(model, adaptation("label"))
    with pytest.raises(UserError, match="global_route router needs experts that were trained with it"):
        weights(adapted, speech(), global_route="router")
    with pytest.raises(UserError, match="beta is for global_route label, not for model"):
        weights(adapted, speech(), global_route="model", beta=0.5)

import dataclasses

import pytest
import recognisers
import torch
from recognisers import DOMAINS, batch, cut, features, fill, recogniser

from moe_asr.decoding.steps import start
from moe_asr.errors import UserError
from moe_asr.experts import ExpertSpec, RouterSpec, RoutingStatistics, base_identity, matching_layers
from moe_asr.methods.adapt import adapt, load_adapted
from moe_asr.methods.adaptation import AdaptationConfig
from moe_asr.methods.hdmole import ROUTERS
from moe_asr.methods.routes import RouteOptions
from moe_asr.methods.saml import SamlConfig, saml_specs
from moe_asr.methods.streams import split_by_stream

FRAME = RouterSpec(threshold_over="frame")
EVERYWHERE = (r".*(q_proj|v_proj)", r".*\.(up|down|fc1)", r".*(linear2|up_proj|down_proj)")
TARGETS = {  # streams of each kind of model, and layers in all of them
    "conformer_ctc": ({"default"}, EVERYWHERE[:2]),
    "conformer_aed": ({"default", "decoder"}, EVERYWHERE[:2]),
    "whisper": ({"default", "decoder"}, EVERYWHERE[:2]),
    "speech_llm": ({"default", "projector", "lm"}, EVERYWHERE[:1] + EVERYWHERE[2:]),
}


def adaptation(targets, router=FRAME, **options):
    options = {"domains": DOMAINS, "global_route": "label", **options}
    return AdaptationConfig(ExpertSpec(targets, 3, 2, router=router), **options)


def loss(adapted, b, x_NTF=None):
    computed_NTF, lengths_N = features(b)
    x_NTF = computed_NTF if x_NTF is None else x_NTF
    with torch.no_grad():
        return adapted(x_NTF, lengths_N, b)


def lengths(model, b):
    return model.stream_lengths(features(b)[1], b)


@pytest.mark.parametrize("kind", TARGETS)
def test_every_layer_is_told_the_stream_that_it_sees(kind):
    streams, targets = TARGETS[kind]
    adapted = fill(adapt(recogniser(kind), adaptation(targets))).eval()
    assert {spec.stream for spec in adapted.adapter.specs} == streams
    assert set(adapted.adapter.layers) == set(matching_layers(recogniser(kind), targets))
    seen = {}
    for name, layer in adapted.adapter.layers.items():
        layer.register_forward_hook(lambda m, args, y, name=name: seen.update({name: args[0].shape[1]}))
    loss(adapted, batch())
    known = lengths(adapted.recogniser, batch())
    assert set(known) == streams
    for name, layer in adapted.adapter.layers.items():
        stream = adapted.recogniser.stream_of(name)
        length = int(known[stream].max())
        if stream == "lm":  # each utterance's parts are contiguous, so that the longest of all need not be the longest
            length = 1 + int(known["projector"].max()) + 2 + batch().tokens_NU.shape[1]
        assert layer.spec.stream == stream and seen[name] == length, name


def test_targets_stay_as_they_are_where_they_keep_to_a_stream():
    model = recogniser("speech_llm")
    spec = ExpertSpec(("default", "x"), 3, 2, router=FRAME)
    one = dataclasses.replace(spec, targets=(r"projector\.linear[12]",))
    assert split_by_stream(model, one) == (dataclasses.replace(one, stream="projector"),)
    both = dataclasses.replace(spec, targets=(r"lm\.layers\.\d+\.mlp\.up_proj", "v_proj", "linear1"))
    split = {part.stream: part.targets for part in split_by_stream(model, both)}
    assert split == {
        "default": tuple(f"encoder.layers.{n}.attention.v_proj" for n in (0, 1)),
        "projector": ("linear1",),
        "lm": (r"lm\.layers\.\d+\.mlp\.up_proj", *(f"lm.layers.{n}.self_attn.v_proj" for n in (0, 1))),
    }


def test_layers_that_see_the_memory_go_with_their_block():
    for kind in ("whisper", "conformer_aed"):
        model = recogniser(kind)
        cross = saml_specs(SamlConfig(3, 1), type(model).attention_targets)[-1]
        assert split_by_stream(model, cross) == (cross,)


AHEAD = [RouterSpec(), RouterSpec(route="given"), RouterSpec(route="local", granularity="utterance")]
PREFIX = RouterSpec(threshold_over="frame", granularity="utterance", pooling="attention", over="prefix")


def refused(kind, targets, router, says):
    with pytest.raises(UserError, match=says) as error:
        adapt(recogniser(kind), adaptation(targets, router))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("router", AHEAD)
def test_routers_that_look_ahead_do_not_go_on_layers_of_tokens(router):
    says = "layer decoder.layers.0.self_attn.q_proj sees tokens.*threshold_over: frame.*over: prefix.*source: memory"
    refused("conformer_aed", ("q_proj",), router, says)
    adapt(recogniser("speech_llm"), adaptation((r"encoder\..*q_proj", "linear1"), router))


@pytest.mark.parametrize("router", [*AHEAD, PREFIX, dataclasses.replace(PREFIX, source="both")])
def test_routers_that_pool_do_not_go_on_a_language_model(router):
    if not router.needs_memory:  # which would be refused for its width
        says = "layer lm.layers.0.mlp.up_proj sees tokens.*keeps a cache.*threshold_over: frame and granularity: frame,"
        assert "memory" not in refused("speech_llm", (r"lm\..*up_proj",), router, says)
    assert recogniser("speech_llm").lm.config.hidden_size != recogniser("speech_llm").encoder.width
    adapt(recogniser("speech_llm"), adaptation((r"encoder\..*q_proj",), router))


@pytest.mark.parametrize("source", ["memory", "both"])
def test_a_memory_of_another_width_is_refused(source):
    router = RouterSpec(route="local", granularity="utterance", source=source)
    for kind, target, width in (("speech_llm", r"lm\..*up_proj", 24), ("speech_llm", "linear2", 20),
                                ("whisper", r"decoder\..*fc2", 24)):  # fmt: skip
        refused(kind, (target,), router, f"takes input of width {width}, but the encoder's states.* of width 16")
    if source == "memory":
        adapt(recogniser("whisper"), adaptation((r"decoder\..*q_proj",), router))


@pytest.mark.parametrize("kind", ["whisper", "conformer_aed"])
def test_weights_of_the_text_so_far_are_those_of_training(kind):
    """A decoder without a cache has them at each step, for every hypothesis and whoever else is in the batch."""
    adapted = fill(adapt(recogniser(kind), adaptation((r"decoder\..*(self_attn\.q_proj|fc1)",), PREFIX))).eval()
    assert adapted.needs_whole_prefix
    steps_equal_the_whole_text(adapted, cache=False)
    together = loss(adapted, batch()).total
    alone = sum(loss(adapted, cut(batch(), n)).total for n in range(3))
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-4)


def test_only_routers_of_text_layers_forbid_a_cache():
    for kind, target in (("speech_llm", r"encoder\..*q_proj"), ("conformer_aed", r"encoder\..*q_proj")):
        adapted = adapt(recogniser(kind), adaptation((target,), PREFIX))
        assert adapted.adapter.needs_whole_prefix and not adapted.needs_whole_prefix


def test_a_language_model_is_not_decoded_without_a_cache():
    model, states_NLW = recogniser("speech_llm"), torch.zeros(1, 4, 24)
    with pytest.raises(UserError, match="a speech_llm always decodes with a cache"):
        start(model, states_NLW, torch.tensor([4]), 12, cache=False)


def test_saml_is_refused_on_a_speech_llm():
    with pytest.raises(UserError, match="saml is for .* use experts on a speech_llm") as error:
        adapt(recogniser("speech_llm"), AdaptationConfig(saml=SamlConfig(3, 1)))
    assert "\n" not in str(error.value)


TOKENS = [(r"lm\..*_proj",), TARGETS["speech_llm"][1], EVERYWHERE[:2]]


@pytest.mark.parametrize("name", [*ROUTERS, "frame", "frame_without_local"])
@pytest.mark.parametrize("kind, targets", [
    ("speech_llm", ("default",)), ("speech_llm", (r"encoder\..*(q_proj|up)",)), ("speech_llm", (r"lm\..*_proj",)),
    ("speech_llm", TARGETS["speech_llm"][1]), ("whisper", EVERYWHERE[:2]), ("conformer_aed", EVERYWHERE[:2]),
])  # fmt: skip
def test_a_mixed_batch_equals_one_by_one(kind, targets, name, tmp_path):
    own = {"frame": FRAME, "frame_without_local": dataclasses.replace(FRAME, route="given")}
    router = own.get(name) or ROUTERS[name]
    if router.pools_frames and targets in TOKENS:
        pytest.skip("refused, as tested above")
    # In float64 from the features on: a threshold that hardly anything exceeds makes much of a last digit.
    adapted = fill(adapt(recogniser(kind).double(), adaptation(targets, router))).eval()
    gates = {}
    for layer in adapted.adapter.layers.values():
        layer.register_forward_hook(lambda m, args, y: gates.update({m.name: m.gates(args[0])}))
    adapted.statistics = None  # so that looking counts nothing
    x_NTF, frames_N = features(batch())
    x_NTF = x_NTF.double()
    together, all_gates = loss(adapted, batch(), x_NTF), dict(gates)
    total = 0.0
    for n in range(3):
        gates.clear()
        total += loss(adapted, cut(batch(), n), x_NTF[n : n + 1, : frames_N[n]]).total
        for layer, own_gates in gates.items():
            same = all_gates[layer][n]
            same = same[: own_gates.shape[1]] if own_gates.dim() == 3 else same
            torch.testing.assert_close(same, own_gates[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.total, total, rtol=1e-5, atol=1e-5)
    with adapted.adapter.disabled():
        assert (loss(adapted, batch(), x_NTF).total - together.total).abs() > 1e-3
    adapted.statistics = RoutingStatistics(DOMAINS)
    adapted.save(tmp_path / "final")
    again = load_adapted(recogniser(kind).double(), tmp_path / "final")
    assert torch.equal(loss(again, batch(), x_NTF).total, together.total)


TEXT = [("speech_llm", TARGETS["speech_llm"][1]), ("whisper", EVERYWHERE[:2]), ("conformer_aed", EVERYWHERE[:2])]


@pytest.mark.parametrize("kind, targets", TEXT)
def test_statistics_count_what_is_real(kind, targets):
    adapted = fill(adapt(recogniser(kind), adaptation(targets))).eval()
    loss(adapted, batch())
    known = lengths(adapted.recogniser, batch())
    if kind == "speech_llm":
        assert torch.equal(known["lm"], known["projector"] + 1 + 2 + batch().token_lengths_N)
    else:
        assert torch.equal(known["decoder"], batch().token_lengths_N + len(adapted.recogniser.prompt))
    sums = adapted.statistics.state()
    for name, layer in adapted.adapter.layers.items():
        assert sums[name][2] == [*known[layer.spec.stream][[0, 2, 1]].tolist(), 0], name


@pytest.mark.parametrize("kind, targets", TEXT)
def test_balance_does_not_see_padding(kind, targets):
    router = dataclasses.replace(FRAME, balance=0.5)
    adapted = fill(adapt(recogniser(kind), adaptation(targets, router))).train()
    adapted.recogniser.eval()
    b = batch()
    more = dataclasses.replace(
        b,
        audio_NS=torch.nn.functional.pad(b.audio_NS, (0, 8000)),
        tokens_NU=torch.nn.functional.pad(b.tokens_NU, (0, 6)),
    )
    for layer in adapted.adapter.layers.values():
        layer.train()
    plain, padded = (adapted(*features(x), x) for x in (b, more))
    assert float(plain.parts["balance"]) > 0
    torch.testing.assert_close(padded.parts["balance"], plain.parts["balance"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(padded.total, plain.total, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind, targets", TEXT)
def test_cached_steps_equal_the_whole_text(kind, targets):
    """Weights of text layers in decoding are those of training: step by step, two hypotheses at a time."""
    steps_equal_the_whole_text(fill(adapt(recogniser(kind), adaptation(targets))).eval())


def steps_equal_the_whole_text(adapted, cache=True):
    model, b = adapted.recogniser, batch()
    texts_NKU = torch.randint(5, 9, (3, 2, 4), generator=torch.Generator().manual_seed(5))
    x_NTF, lengths_N = features(b)
    with torch.no_grad():
        with adapted.route(b, lengths_N, adapted.domain_weights(b, x_NTF, lengths_N)):
            states = (model.speech if hasattr(model, "speech") else model.encode)(x_NTF, lengths_N)
            steps = start(model, *states, 12, adapted.adapter, cache)
            logits = [steps.step(model.prompts(b)[:, None])]
            steps.reorder(torch.zeros(3, 2, dtype=torch.int64))
            logits += [steps.step(texts_NKU[:, :, u, None]) for u in range(4)]
        stepwise_NKUV = torch.stack([one.expand(-1, 2, -1) for one in logits], 2).log_softmax(-1)
        for k in range(2):
            one = dataclasses.replace(b, tokens_NU=texts_NKU[:, k], token_lengths_N=torch.full((3,), 4))
            targets_NU = torch.nn.functional.pad(texts_NKU[:, k], (0, 1), value=model.end)
            expected = -stepwise_NKUV[:, k].gather(-1, targets_NU[..., None]).sum()
            total = model_cross_entropy(adapted, one)
            torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-4)


def model_cross_entropy(adapted, b):
    if hasattr(adapted.recogniser, "ctc_weight"):
        adapted.recogniser.ctc_weight = 0.0
    return adapted(*features(b), b).total


def test_experts_start_from_single_loras_in_all_streams(tmp_path):
    targets = TARGETS["speech_llm"][1]
    given, loras = ROUTERS["given"], []
    for n in range(3):
        one = adapt(recogniser("speech_llm"), AdaptationConfig(ExpertSpec(targets, 1, 2, router=given)))
        fill(one, seed=n).save(tmp_path / str(n))
        loras.append(one.eval())
    folders = tuple(str(tmp_path / str(n)) for n in range(3))
    adapted = adapt(recogniser("speech_llm"), adaptation(targets, given, initial_experts=folders)).eval()
    assert len(adapted.adapter.specs) == 3
    for n, one in enumerate(loras):
        b = dataclasses.replace(cut(batch(), n), domains_N=torch.tensor([n]))
        torch.testing.assert_close(loss(adapted, b).total, loss(one, b).total, rtol=1e-5, atol=1e-5)
    adapted.save(tmp_path / "final")
    load_adapted(recogniser("speech_llm"), tmp_path / "final")


@pytest.fixture
def classifier(tmp_path):
    return recognisers.save_classifier(tmp_path / "classifier")


def test_routes_on_a_speech_llm(classifier):
    """Oracle, posterior and uniform, each what it says; fallback fades to the base, base_domain has none."""
    config = adaptation(("default",), ROUTERS["hdmole"], domain_classifier=classifier, global_route="posterior")
    adapted = fill(adapt(recogniser("speech_llm"), config)).eval()

    def speech(b=batch(), **route):
        x_NTF, lengths_N = features(b)
        options = RouteOptions(**route)
        domains_NG = adapted.domain_weights(b, x_NTF, lengths_N, options)
        with torch.no_grad(), adapted.route(b, lengths_N, domains_NG, options.fallback):
            return adapted.recogniser.speech(x_NTF, lengths_N)[0]

    def with_domains(domains_NE, scale_N=None):
        x_NTF, lengths_N = features(batch())
        known = adapted.recogniser.stream_lengths(lengths_N)
        with torch.no_grad(), adapted.adapter.route(domains_NE, known, scale_N):
            return adapted.recogniser.speech(x_NTF, lengths_N)[0]

    posteriors = adapted.classifier.posteriors(*features(batch()))
    oracle = torch.eye(3)[[0, 2, 1]]
    assert torch.equal(speech(), with_domains(posteriors))
    assert torch.equal(speech(global_route="label"), with_domains(oracle))
    assert torch.equal(speech(global_route="uniform"), with_domains(torch.full((3, 3), 1 / 3)))
    assert not torch.allclose(speech(), speech(global_route="label"), atol=1e-3)
    entropy = -(posteriors * posteriors.log()).sum(-1) / torch.tensor(3.0).log()
    faded = with_domains(posteriors, (1 - entropy) ** 2.0)
    torch.testing.assert_close(speech(fallback=2.0), faded, rtol=1e-5, atol=1e-5)
    with adapted.adapter.disabled():
        base = speech()
    torch.testing.assert_close(speech(global_route="uniform", fallback=1.0), base, rtol=1e-5, atol=1e-5)
    unknown = dataclasses.replace(batch(), domains_N=torch.tensor([0, -1, 1]))
    with pytest.raises(UserError, match="utterance u1 has none of the domains a, b, c"):
        speech(unknown, global_route="label")
    assert torch.equal(speech(unknown), speech())


def test_a_general_domain_left_to_the_base_in_all_streams():
    experts = ExpertSpec(TARGETS["speech_llm"][1], 2, 2, router=FRAME)
    config = AdaptationConfig(experts, domains=DOMAINS, base_domain="b", global_route="label")
    adapted = fill(adapt(recogniser("speech_llm"), config)).eval()
    totals = {}
    for domain in range(3):
        b = dataclasses.replace(cut(batch(), 0), domains_N=torch.tensor([domain]))
        totals[domain] = float(loss(adapted, b).total)
    with adapted.adapter.disabled():
        base = float(loss(adapted, cut(batch(), 0)).total)
    assert totals[1] == pytest.approx(base, rel=1e-6)
    assert min(abs(totals[0] - base), abs(totals[2] - base), abs(totals[0] - totals[2])) > 0.01


def test_training_leaves_the_speech_llm_as_it_is():
    adapted = adapt(recogniser("speech_llm"), adaptation(TARGETS["speech_llm"][1])).train()
    identity = base_identity(adapted.recogniser)
    optimizer = torch.optim.AdamW(adapted.adapter.parameters(), lr=0.01)
    losses = []
    for _ in range(8):
        total = adapted(*features(batch()), batch()).total
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total.item())
    assert losses[-1] < losses[0] and base_identity(adapted.recogniser) == identity
    assert all(parameter.grad is None for parameter in adapted.recogniser.lm.embed_tokens.parameters())

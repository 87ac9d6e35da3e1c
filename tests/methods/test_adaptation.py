import dataclasses

import pytest
import torch

from moe_asr.data.batches import Batch
from moe_asr.data.features import FeatureConfig, log_mel
from moe_asr.errors import UserError
from moe_asr.experts import ExpertLinear, ExpertSpec, RouterSpec, base_identity
from moe_asr.methods.adapt import adapt, load_adapted
from moe_asr.methods.adaptation import AdaptationConfig
from moe_asr.methods.hdmole import ROUTERS, entropy_fallback
from moe_asr.methods.routes import RouteOptions
from moe_asr.methods.saml import SamlConfig
from moe_asr.models.build import ModelConfig, build_model
from moe_asr.models.conformer import ConformerConfig
from moe_asr.models.conformer_aed import ConformerAEDConfig
from moe_asr.models.conformer_ctc import ConformerCTCConfig
from moe_asr.models.domain_classifier import DomainClassifierConfig
from moe_asr.models.encoders import EncoderConfig
from moe_asr.models.folder import FolderConfig, save_model
from moe_asr.models.transformer_decoder import DecoderConfig

ENCODER = ConformerConfig(mels=20, width=16, layers=2, heads=2)
FEATURES = FeatureConfig(num_mels=20)
DOMAINS = ("a", "b", "c")


def recogniser():
    torch.manual_seed(0)
    return build_model(ModelConfig(conformer_ctc=ConformerCTCConfig(encoder=ENCODER, vocab_size=9))).eval()


def batch(n=3):
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([16000, 9000, 12345])[:n]
    audio = 0.1 * torch.randn(n, 16000, generator=generator)
    audio[torch.arange(16000) >= lengths[:, None]] = 0
    names = [""] * n
    tokens, domains = torch.randint(3, 9, (n, 4), generator=generator), torch.tensor([0, 2, 1])[:n]
    ids = [f"u{i}" for i in range(n)]
    return Batch(ids, names, names, names, names, audio, lengths, tokens, torch.full((n,), 4), domains)


@pytest.fixture
def classifier(tmp_path):
    torch.manual_seed(3)
    config = ModelConfig(domain_classifier=DomainClassifierConfig(EncoderConfig(ENCODER), domains=DOMAINS))
    save_model(tmp_path / "classifier", build_model(config), FolderConfig(config, FEATURES))
    return str(tmp_path / "classifier")


def adaptation(classifier, router=RouterSpec(), **options):
    experts = ExpertSpec((r".*(q_proj|v_proj|up|down)",), 3, 2, router=router)
    return AdaptationConfig(experts, domain_classifier=classifier, **options)


def fill(adapted):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.adapter.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def features(batch):
    return log_mel(batch.audio_NS, batch.audio_lengths_N, FEATURES)


def log_probs(adapted, batch, **route):
    x, lengths = features(batch)
    options = RouteOptions(**route)
    with (
        torch.no_grad(),
        adapted.route(batch, lengths, adapted.domain_weights(batch, x, lengths, options), options.fallback),
    ):
        return adapted.recogniser.log_probs(x, lengths)


def cut(batch, n):
    rows = {k: v[n : n + 1] for k, v in vars(batch).items()}
    length = int(rows["audio_lengths_N"])
    return dataclasses.replace(batch, **{**rows, "audio_NS": rows["audio_NS"][:, :length]})


@pytest.mark.parametrize("name", ROUTERS)
def test_mixed_batch_equals_one_by_one_and_save_load_is_exact(name, classifier, tmp_path):
    adapted = adapt(recogniser(), adaptation(classifier, ROUTERS[name])).eval()
    fill(adapted)
    whole, frames = log_probs(adapted, batch())
    for n in range(3):
        alone, length = log_probs(adapted, cut(batch(), n))
        assert frames[n] == length[0]
        torch.testing.assert_close(whole[n, : frames[n]], alone[0], rtol=1e-4, atol=1e-4)
    adapted.save(tmp_path / "final")
    again = load_adapted(recogniser(), tmp_path / "final")
    assert torch.equal(log_probs(again, batch())[0], whole)


def test_training_touches_the_experts_alone(classifier):
    adapted = adapt(recogniser(), adaptation(classifier))
    base = base_identity(adapted.recogniser)
    fixed = {n: p.clone() for n, p in adapted.classifier.state_dict().items()}
    adapted.train()
    assert not adapted.classifier.training and adapted.recogniser.training
    optimizer = torch.optim.AdamW(adapted.adapter.parameters(), lr=0.01)
    losses = []
    for _ in range(8):
        loss = adapted(*features(batch()), batch())
        (loss.total / loss.count).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.total.item())
    assert losses[-1] < losses[0]
    assert base_identity(adapted.recogniser) == base
    assert all(torch.equal(fixed[n], p) for n, p in adapted.classifier.state_dict().items())


def test_routes(classifier):
    adapted = adapt(recogniser(), adaptation(classifier, ROUTERS["given"])).eval()
    fill(adapted)
    b = batch()
    posteriors = adapted.classifier.posteriors(*features(b))

    def weights(b=b, **route):
        return adapted.domain_weights(b, *features(b), RouteOptions(**route))

    torch.testing.assert_close(weights(), posteriors)
    assert torch.equal(weights(best=True), torch.eye(3)[posteriors.argmax(1)])
    assert torch.equal(weights(global_route="label"), torch.eye(3)[[0, 2, 1]])
    expected = torch.full((3, 3), 0.15) + 0.55 * torch.eye(3)[[0, 2, 1]]
    torch.testing.assert_close(weights(global_route="label", beta=0.7), expected)
    assert torch.equal(weights(global_route="uniform"), torch.full((3, 3), 1 / 3))
    unlabelled = dataclasses.replace(b, domains_N=torch.tensor([0, -1, 1]))
    with pytest.raises(UserError, match="utterance u1 has none of the domains a, b, c"):
        weights(unlabelled, global_route="label")
    # A uniform posterior with full fallback is the base model.
    with adapted.adapter.disabled():
        base = log_probs(adapted, b)[0]
    torch.testing.assert_close(log_probs(adapted, b, global_route="uniform", fallback=1.0)[0], base)


def test_base_domain_is_served_by_the_base(classifier):
    experts = dataclasses.replace(adaptation(None, ROUTERS["hdmole"]).experts, num_experts=2)
    config = AdaptationConfig(experts, base_domain="b", domain_classifier=classifier)
    adapted = adapt(recogniser(), config).eval()
    fill(adapted)
    b = dataclasses.replace(batch(), domains_N=torch.tensor([1, 0, 2]))
    mixed = log_probs(adapted, b, global_route="label")[0]
    with adapted.adapter.disabled():
        base = log_probs(adapted, b)[0]
    torch.testing.assert_close(mixed[0], base[0], rtol=1e-6, atol=1e-6)
    assert (mixed[1:] - base[1:]).abs().max() > 0.01
    x, lengths = features(b)
    p = adapted.classifier.posteriors(x, lengths)
    with adapted.route(b, lengths, adapted.domain_weights(b, x, lengths)) as routing:
        torch.testing.assert_close(routing.scale_N, 1 - p[:, 1])
        torch.testing.assert_close(routing.domains_NE, p[:, [0, 2]] / (1 - p[:, 1:2]))
    with pytest.raises(UserError, match="none of the domains"):
        adapt(recogniser(), dataclasses.replace(config, base_domain="z"))
    local = dataclasses.replace(experts, router=ROUTERS["adamole"])
    with pytest.raises(UserError, match="base_domain is for routers"):
        adapt(recogniser(), dataclasses.replace(config, experts=local))


def test_entropy_fallback():
    p = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.9, 0.1]])
    scale = entropy_fallback(p, 1.0)
    h = -(0.9 * torch.tensor(0.9).log() + 0.1 * torch.tensor(0.1).log()) / torch.tensor(2.0).log()
    torch.testing.assert_close(scale, torch.stack([torch.tensor(1.0), torch.tensor(0.0), 1 - h]))
    assert torch.equal(entropy_fallback(p, 0.0), torch.ones(3))


def test_experts_start_from_single_loras(classifier, tmp_path):
    targets, loras = (r".*(q_proj|v_proj|up|down)",), []
    for n in range(3):
        one = adapt(recogniser(), AdaptationConfig(ExpertSpec(targets, 1, 2, router=ROUTERS["given"])))
        with torch.no_grad():
            for parameter in one.adapter.parameters():
                parameter.normal_(generator=torch.Generator().manual_seed(n)).mul_(0.1)
        one.save(tmp_path / str(n))
        loras.append(one)
    folders = tuple(str(tmp_path / str(n)) for n in range(3))
    adapted = adapt(recogniser(), adaptation(classifier, ROUTERS["given"], initial_experts=folders)).eval()
    for n, one in enumerate(loras):
        b = dataclasses.replace(cut(batch(), n), domains_N=torch.tensor([n]))
        alone = log_probs(one.eval(), b)[0]
        torch.testing.assert_close(log_probs(adapted, b, global_route="label")[0], alone, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="2 folders for 3 experts"):
        adapt(recogniser(), adaptation(classifier, initial_experts=folders[:2]))
    with pytest.raises(UserError, match="no adaptation in"):
        adapt(recogniser(), adaptation(classifier, initial_experts=(*folders[:2], str(tmp_path))))
    damaged = tmp_path / "damaged" / "adapter"
    damaged.mkdir(parents=True)
    (damaged / "adapter.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match="damaged"):
        adapt(recogniser(), adaptation(classifier, initial_experts=(*folders[:2], str(damaged.parent))))
    model = recogniser()
    for change, says in (({"rank": 4, "alpha": 64.0}, "rank 2"), ({"alpha": 3.0}, "rank 16, the experts here 1.5")):
        experts = dataclasses.replace(adaptation(None).experts, **change)
        config = dataclasses.replace(adaptation(classifier, initial_experts=folders), experts=experts)
        with pytest.raises(UserError, match=says):
            adapt(model, config)
    adapt(model, adaptation(classifier))  # nothing was left on the model
    other = recogniser()
    with torch.no_grad():
        other.head.bias += 1
    with pytest.raises(UserError, match="belongs to another base model"):
        adapt(other, adaptation(classifier, initial_experts=folders))


def test_default_targets(classifier):
    experts = ExpertSpec(("default",), 3, 1)
    adapted = adapt(recogniser(), dataclasses.replace(adaptation(classifier), experts=experts))
    assert len(adapted.adapter.layers) == len([m for m in recogniser().encoder.layers.modules()
                                               if isinstance(m, torch.nn.Linear)])  # fmt: skip


def test_one_lora_needs_no_domains():
    config = AdaptationConfig(ExpertSpec(("q_proj",), 1, 4, router=RouterSpec(route="given", select="all")))
    with pytest.raises(UserError, match="fallback, beta and best are for experts"):
        log_probs(adapt(recogniser(), config).eval(), batch(), fallback=1.0)
    adapted = adapt(recogniser(), config).train()
    loss = adapted(*features(batch()), dataclasses.replace(batch(), domains_N=torch.full((3,), -1)))
    loss.total.backward()
    assert set(adapted.adapter.named_parameters()) == {f"{n}.{m}" for n in adapted.adapter.layers for m in "AB"}


def test_balance_is_part_of_the_loss(classifier):
    router = dataclasses.replace(ROUTERS["dense"], balance=0.5)
    adapted = adapt(recogniser(), adaptation(None, router, domains=DOMAINS)).train()
    loss = adapted(*features(batch()), batch())
    assert "balance" in loss.parts and float(loss.parts["balance"]) > 0
    adapted.eval()
    assert "balance" not in adapted(*features(batch()), batch()).parts


def test_gradient_checkpointing_keeps_its_routing(classifier):
    def gradients(checkpointing):
        model = recogniser()
        adapted = adapt(model, adaptation(classifier))
        model.set_gradient_checkpointing(checkpointing, adapted.adapter.checkpoint_context_fn)
        fill(adapted)
        adapted.recogniser.train()
        for module in adapted.modules():
            if "Dropout" in type(module).__name__:
                module.eval()
        torch.manual_seed(0)
        adapted(*features(batch()), batch()).total.backward()
        return {n: p.grad for n, p in adapted.adapter.named_parameters().items()}

    plain, checkpointed = gradients(False), gradients(True)
    for name in plain:
        torch.testing.assert_close(checkpointed[name], plain[name], rtol=1e-4, atol=1e-5)


def test_errors(classifier, tmp_path):
    experts = adaptation(None).experts
    with pytest.raises(UserError, match="3 experts for 2 domains"):
        adapt(recogniser(), AdaptationConfig(experts, domains=("a", "b"), global_route="label"))
    with pytest.raises(UserError, match="but the classifier knows a, b, c"):
        adapt(recogniser(), adaptation(classifier, domains=("c", "b", "a")))
    model = recogniser()
    with pytest.raises(UserError, match="needs a domain_classifier"):
        adapt(model, AdaptationConfig(experts, domains=DOMAINS))
    assert not any(isinstance(m, ExpertLinear) for m in model.modules())
    with pytest.raises(UserError, match="no model folder"):
        adapt(recogniser(), adaptation(str(tmp_path / "nowhere")))
    with pytest.raises(UserError, match="no adaptation in"):
        load_adapted(recogniser(), tmp_path)
    model = recogniser()
    with pytest.raises(UserError, match="matches no linear layer"):
        adapt(model, AdaptationConfig(ExpertSpec(("nothing",), 3), domains=DOMAINS, global_route="label"))
    assert not any(isinstance(m, ExpertLinear) for m in model.modules())


def with_decoder():
    torch.manual_seed(0)
    config = ConformerAEDConfig(ENCODER, DecoderConfig(1, 2, 24, max_tokens=40), 9)
    return build_model(ModelConfig(conformer_aed=config)).eval()


def test_routers_that_pool_do_not_go_on_layers_of_tokens():
    pooling = RouterSpec(route="local", select="all", granularity="utterance")
    with pytest.raises(UserError, match="decoder.layers.0.* sees tokens, and this router pools over frames"):
        adapt(with_decoder(), AdaptationConfig(ExpertSpec(("default",), 3, 2, router=pooling)))
    adapt(with_decoder(), AdaptationConfig(ExpertSpec((r"encoder\..*q_proj",), 3, 2, router=pooling)))
    one = ExpertSpec(("default",), 1, 2, router=ROUTERS["given"])
    adapt(with_decoder(), AdaptationConfig(one))  # a LoRA looks at nothing


def test_statistics_leave_out_the_padding_of_texts():
    adapted = adapt(with_decoder(), AdaptationConfig(saml=SamlConfig(3, 1, router_context="prefix"))).eval()
    short = dataclasses.replace(batch(), token_lengths_N=torch.tensor([4, 1, 2]))
    with torch.no_grad():
        adapted(*features(short), short)
    state = adapted.statistics.state()
    frames = sum(state["decoder.layers.0.self_attn.q_proj"][2])
    assert frames == 4 + 1 + 2 + 3  # each text is preceded by its prompt


def test_global_route_is_for_routers_that_see_the_domain():
    adapted = adapt(with_decoder(), AdaptationConfig(saml=SamlConfig(3, 1))).eval()
    with pytest.raises(UserError, match="fallback are for experts whose routers see the domain"):
        adapted.domain_weights(batch(), *features(batch()), RouteOptions("uniform"))

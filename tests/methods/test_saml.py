from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from moe_asr.errors import UserError
from moe_asr.experts import attach, base_identity, load_adapter, save_adapter
from moe_asr.methods.saml import SamlConfig, saml_specs
from moe_asr.models.conformer import ConformerConfig
from moe_asr.models.conformer_aed import ConformerAED, ConformerAEDConfig
from moe_asr.models.conformer_ctc import ConformerCTC, ConformerCTCConfig
from moe_asr.models.transformer_decoder import DecoderConfig

N, FRAMES, MELS, WIDTH, VOCAB = 3, 40, 7, 12, 11
LENGTHS = torch.tensor([40, 17, 29])
TOKENS = torch.tensor([[4, 5, 6, 7, 8], [9, 4, 0, 0, 0], [5, 5, 10, 0, 0]])
TOKEN_LENGTHS = torch.tensor([5, 2, 3])
TEXTS = torch.tensor([[2, 4, 5, 6, 7], [2, 9, 4, 4, 4], [2, 5, 5, 10, 4]])
CONTEXTS = ("encoder", "prefix", "official")
every_context = pytest.mark.parametrize("context", CONTEXTS)


def recogniser():
    torch.manual_seed(0)
    encoder = ConformerConfig(mels=MELS, width=WIDTH, layers=2, heads=2, ffn_multiplier=3, kernel=5, dropout=0.0)
    decoder = DecoderConfig(layers=2, heads=2, ffn=16, dropout=0.0, max_tokens=20)
    return ConformerAED(ConformerAEDConfig(encoder, decoder, VOCAB)).eval().double()


def features():
    return torch.randn(N, FRAMES, MELS, generator=torch.Generator().manual_seed(1), dtype=torch.double)


def adapted(filled=True, **options):
    model = recogniser()
    options = {"num_experts": 4, **options}
    adapter = attach(model, saml_specs(SamlConfig(**options), model.attention_targets))
    if filled:
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.double))
    model.encoder.register_forward_hook(lambda module, args, output: remember(adapter, *output))
    return model, adapter


def remember(adapter, states, lengths):
    adapter.routing.memory = states, torch.arange(states.shape[1]) < lengths[:, None]


@contextmanager
def route(model, adapter, rows=slice(None), tokens=TOKEN_LENGTHS):
    lengths = {"default": model.output_lengths(LENGTHS[rows]), "decoder": tokens[rows] + 1}
    with adapter.route(lengths=lengths) as routing:
        yield routing


def loss(model):
    batch = SimpleNamespace(tokens_NU=TOKENS, token_lengths_N=TOKEN_LENGTHS, domains_N=torch.zeros(N))
    return model(features(), LENGTHS, batch).total


@every_context
def test_fresh_and_disabled_equal_the_base(context):
    model, adapter = adapted(filled=False, router_context=context)
    base = recogniser()
    with route(model, adapter):
        assert torch.equal(loss(model), loss(base))
        generator = torch.Generator().manual_seed(0)
        for layer in adapter.layers.values():
            layer.B.data = torch.randn(layer.B.shape, generator=generator, dtype=torch.double)
        assert not torch.equal(loss(model), loss(base))
        with adapter.disabled():
            assert torch.equal(loss(model), loss(base))


@every_context
def test_three_routers_of_the_size_that_the_formula_says(context):
    _, adapter = adapted(router_context=context)
    sizes = {key: sum(p.numel() for p in router.parameters()) for key, router in adapter.routers.items()}
    pooling = WIDTH * (3 * WIDTH + 2)  # convolution, its bias, query
    single = pooling + 4 * (WIDTH + 1)
    cross = single if context == "encoder" else 2 * pooling + 4 * (2 * WIDTH + 1)
    assert sizes == {"group0": single, "group1": single, "group2": cross}
    assert len(adapter.layers) == 3 * 2 * 4  # three kinds, two layers, q k v out
    assert adapter.needs_memory and adapter.needs_whole_prefix == (context != "encoder")


@every_context
@pytest.mark.parametrize("mixing", ["factor", "product"])
def test_gradients_reach_everything_and_the_base_stays(context, mixing):
    model, adapter = adapted(router_context=context, mixing=mixing)
    identity = base_identity(model)
    model.train()
    with route(model, adapter):
        loss(model).backward()
    adapter.check_trainable()
    for name, parameter in adapter.named_parameters().items():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name
    assert base_identity(model) == identity == base_identity(recogniser())


def hidden(model, adapter, tokens, rows=slice(None), cut=False):
    """Decoder states before each token, with weights of that text."""
    x, lengths = features()[rows], LENGTHS[rows]
    if cut:
        x = x[:, : int(lengths.max())]
    with torch.no_grad(), route(model, adapter, rows, torch.full((N,), tokens.shape[1] - 1)):
        states, lengths = model.encode(x, lengths)
        return model.decoder(tokens, states, lengths)


@every_context
@pytest.mark.parametrize("mixing", ["factor", "product"])
def test_mixed_batch_equals_one_by_one_but_for_the_official_router(context, mixing):
    model, adapter = adapted(router_context=context, mixing=mixing)
    together = hidden(model, adapter, TEXTS)
    worst = 0.0
    for n, length in enumerate((5, 2, 3)):
        alone = hidden(model, adapter, TEXTS[n : n + 1, :length], slice(n, n + 1), cut=True)
        worst = max(worst, float((alone[0] - together[n, :length]).abs().max()))
    assert worst > 1e-3 if context == "official" else worst < 1e-10


@every_context
def test_only_the_official_router_sees_the_future(context):
    model, adapter = adapted(router_context=context)
    changed = TEXTS.clone()
    changed[:, 3:] = 8
    before, after = hidden(model, adapter, TEXTS), hidden(model, adapter, changed)
    same = torch.allclose(before[:, :3], after[:, :3], rtol=1e-12, atol=1e-12)
    assert same == (context != "official")
    assert not torch.allclose(before[:, 3:], after[:, 3:])


def test_cached_decoding_equals_teacher_forcing():
    model, adapter = adapted()
    tokens, other = TEXTS, TEXTS.flip(0)  # a second hypothesis of each utterance
    expected = model.decoder.logits(hidden(model, adapter, tokens))
    second = model.decoder.logits(hidden(model, adapter, other))
    with torch.no_grad(), adapter.route(lengths=model.output_lengths(LENGTHS)) as routing:
        state = model.decoder.start(*model.encode(features(), LENGTHS), max_tokens=6)
        for u in range(3):
            step = model.decoder.step(torch.stack([tokens[:, u : u + 1], other[:, u : u + 1]], 1), state)
            torch.testing.assert_close(step[:, 0], expected[:, u])
            torch.testing.assert_close(step[:, 1], second[:, u])
        assert len(routing.shared) == 2 + 2  # two blocks of the encoder; decoder and cross once for the batch
        rows = torch.tensor([2, 0])  # the second utterance has ended
        state.select(rows)
        adapter.narrow(rows)
        assert [len(shared.gates) for shared in adapter.routing.shared.values()] == [2, 2]  # kept, not computed again
        for u in (3, 4):
            step = model.decoder.step(torch.stack([tokens[rows, u : u + 1], other[rows, u : u + 1]], 1), state)
            torch.testing.assert_close(step[:, 0], expected[rows, u])
        state.select(torch.tensor([0]))
        with pytest.raises(UserError, match="adapter.narrow"):
            model.decoder.step(tokens[2:3, :1][:, None], state)


@every_context
def test_a_second_batch_has_its_own_memory(context):
    model, adapter = adapted(router_context=context)
    with torch.no_grad(), adapter.route(lengths=model.output_lengths(LENGTHS)):
        for x in (features(), features().flip(2)):
            both = [model.decoder(TEXTS, *model.encode(x, LENGTHS))]
            with adapter.route(lengths=model.output_lengths(LENGTHS)):
                both.append(model.decoder(TEXTS, *model.encode(x, LENGTHS)))
            assert torch.equal(*both)


@every_context
def test_a_text_may_be_longer_than_its_audio(context):
    model, adapter = adapted(router_context=context)
    text = torch.randint(3, VOCAB, (N, 15), generator=torch.Generator().manual_seed(0))
    assert int(model.output_lengths(LENGTHS).max()) < 15 and hidden(model, adapter, text).isfinite().all()


@pytest.mark.parametrize("context", ["prefix", "official"])
def test_other_routers_refuse_a_cache(context):
    model, adapter = adapted(router_context=context)
    with torch.no_grad(), adapter.route(lengths=model.output_lengths(LENGTHS)):
        with pytest.raises(UserError, match="without a cache"):
            model.decoder.start(*model.encode(features(), LENGTHS), max_tokens=6)


def test_no_memory_says_what_to_do():
    model, adapter = adapted()
    states = torch.randn(N, 10, WIDTH, dtype=torch.double)
    with route(model, adapter), pytest.raises(UserError, match="routing.memory"):
        model.decoder(TOKENS, states, torch.full((N,), 10))


@every_context
def test_recomputed_activations_give_the_same_gradients(context):
    def gradients(checkpointing):
        model, adapter = adapted(router_context=context, dropout=0.0)
        model.train()
        model.set_gradient_checkpointing(checkpointing, adapter.checkpoint_context_fn)
        with route(model, adapter):
            total = loss(model)
        total.backward()
        return {name: parameter.grad for name, parameter in adapter.named_parameters().items()}

    plain, again = gradients(False), gradients(True)
    for name in plain:
        torch.testing.assert_close(again[name], plain[name], rtol=1e-10, atol=1e-12, msg=name)


@every_context
def test_layers_of_a_block_share_weights_and_blocks_do_not(context):
    model, adapter = adapted(router_context=context)
    seen = {}
    for name, layer in adapter.layers.items():
        gates = layer.gates
        layer.gates = lambda *a, gates=gates, name=name, **k: seen.setdefault(name, gates(*a, **k))
    with torch.no_grad(), route(model, adapter):
        loss(model)
    sizes = [w.sum(-1) for w in seen.values()]
    assert all(torch.allclose(size, torch.ones_like(size)) for size in sizes)
    for layer in range(2):
        for block in (f"encoder.layers.{layer}.attention", f"decoder.layers.{layer}.self_attn"):
            for projection in ("k_proj", "v_proj", "out_proj"):
                assert seen[f"{block}.{projection}"] is seen[f"{block}.q_proj"]
        cross = f"decoder.layers.{layer}.encoder_attn"
        assert seen[f"{cross}.out_proj"] is seen[f"{cross}.q_proj"]
        query = seen[f"{cross}.q_proj"]
        assert torch.equal(seen[f"{cross}.v_proj"], query[:, 0] if context == "prefix" else query)
    first, second = (seen[f"encoder.layers.{i}.attention.q_proj"] for i in range(2))
    assert not torch.allclose(first, second)
    first, second = (seen[f"decoder.layers.{i}.self_attn.q_proj"] for i in range(2))
    assert torch.equal(first, second) == (context == "encoder")


def test_save_and_load(tmp_path):
    model, adapter = adapted(router_context="prefix")
    save_adapter(adapter, tmp_path / "a")
    again = recogniser()
    loaded = load_adapter(again, tmp_path / "a")
    again.encoder.register_forward_hook(lambda module, args, output: remember(loaded, *output))
    with torch.no_grad(), route(model, adapter), route(again, loaded):
        assert torch.equal(loss(model), loss(again))


def test_a_model_without_decoder_has_one_router():
    model = ConformerCTC(ConformerCTCConfig(ConformerConfig(mels=MELS, width=WIDTH, layers=1, heads=2), VOCAB))
    specs = saml_specs(SamlConfig(), model.attention_targets)
    assert len(specs) == 1 and specs[0].num_experts == 10 and specs[0].scale == 4.0
    adapter = attach(model, specs)
    assert not adapter.needs_memory and not adapter.needs_whole_prefix
    with pytest.raises(UserError, match="kinds of attention"):
        saml_specs(SamlConfig(), {"self": ("q_proj",)})

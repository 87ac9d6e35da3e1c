"""Every recogniser with its weights in 4 bits: loss, gradients of experts, decoding with a cache."""

from types import SimpleNamespace

import pytest
import torch

from moe_asr.experts import ExpertSpec, RouterSpec, attach
from moe_asr.models.build import ModelConfig, build_model
from moe_asr.models.conformer import ConformerConfig
from moe_asr.models.conformer_aed import ConformerAEDConfig
from moe_asr.models.conformer_ctc import ConformerCTCConfig
from moe_asr.models.transformer_decoder import DecoderConfig
from moe_asr.models.whisper import WhisperConfig
from moe_asr.quant import QuantConfig, dequantise, quantise

ENCODER = ConformerConfig(mels=7, width=16, layers=1, heads=2, kernel=5, dropout=0.0)
CONFIGS = {
    "conformer_ctc": ConformerCTCConfig(ENCODER, 11),
    "conformer_aed": ConformerAEDConfig(ENCODER, DecoderConfig(1, 2, 24, 0.0, 20), 11),
    "whisper": WhisperConfig(7, 16, 1, 1, 2, 24, 11, 60, 20),
}


def batch():
    tokens = torch.tensor([[3, 4, 5], [6, 7, 0]])
    domains = torch.tensor([-1, -1])
    return SimpleNamespace(tokens_NU=tokens, token_lengths_N=torch.tensor([3, 2]), domains_N=domains)


@pytest.fixture(params=CONFIGS)
def model(request):
    torch.manual_seed(0)
    return build_model(ModelConfig(**{request.param: CONFIGS[request.param]}))


def inputs():
    torch.manual_seed(1)
    return torch.randn(2, 40, 7), torch.tensor([40, 33])


def test_all_but_heads_positions_norms_and_biases_is_in_4_bits(model):
    names = [name for name, _ in model.named_parameters()]
    quantise(model)
    kept = [name for name in names if name in dict(model.named_parameters())]
    assert all(name.endswith("bias") or "norm" in name or "head." in name or "positions" in name for name in kept)
    assert set(names) - set(kept) and all(name.endswith("weight") for name in set(names) - set(kept))


def test_loss_and_gradients_of_experts_are_those_of_the_dequantised_model(model):
    quantise(model, QuantConfig(double=True))
    router = RouterSpec(route="given", select="all")
    adapter = attach(model, ExpertSpec(type(model).default_targets, 2, 2, router=router))
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    found = []
    for _ in range(2):
        with adapter.route(torch.tensor([[0.3, 0.7], [1.0, 0.0]])):
            loss = model(*inputs(), batch()).total
        found.append((loss, *torch.autograd.grad(loss, adapter.parameters())))
        dequantise(model)
    assert all(gradient.abs().sum() > 0 for gradient in found[0])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_trains_under_autocast(model):
    quantise(model)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(*inputs(), batch()).total
    loss.backward()
    assert loss.isfinite() and all(p.grad is not None for p in model.parameters() if p.requires_grad)


@torch.no_grad()
def test_decodes_with_a_cache_as_without(model):
    if not hasattr(model, "decoder"):
        pytest.skip("no decoder")
    quantise(model.eval())
    states, lengths = model.encode(*inputs())
    tokens = torch.tensor([[2, 4, 5], [2, 7, 3]])
    expected = model.decoder.logits(model.decoder(tokens, states, lengths))
    state = model.decoder.start(states, lengths, max_tokens=5)
    for position in range(3):
        logits = model.decoder.step(tokens[:, None, position : position + 1], state)[:, 0]
        torch.testing.assert_close(logits, expected[:, position], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_computes_in_bfloat16(model):
    quantise(model.eval())
    expected, _ = model.encode(*inputs())
    features, lengths = inputs()
    states, _ = model.bfloat16().encode(features.bfloat16(), lengths)
    assert states.dtype == torch.bfloat16
    torch.testing.assert_close(states.float(), expected, rtol=0.1, atol=0.2)

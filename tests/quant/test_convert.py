import copy

import pytest
import torch
from torch import nn

from moe_asr.errors import UserError
from moe_asr.experts import ExpertSpec, RouterSpec, attach, base_identity
from moe_asr.models.conformer import ConformerConfig
from moe_asr.models.conformer_ctc import ConformerCTC, ConformerCTCConfig
from moe_asr.quant import Nf4Layer, QuantConfig, bits_per_weight, dequantise, is_quantised, num_parameters, quantise

SPEC = ExpertSpec((r"encoder\.layers\.\d+\.attention\.(q|k|v|out)_proj", "up"), 2, 3, router=RouterSpec(route="local"))


def recogniser(width=16):
    torch.manual_seed(0)
    return ConformerCTC(ConformerCTCConfig(ConformerConfig(7, width, 2, 2, 3, 5, 0.0), 11))


def run(model):
    torch.manual_seed(1)
    return model.log_probs(torch.randn(2, 30, 7), torch.tensor([30, 22]))[0]


class Everything(nn.Module):
    """One of each name that the default knows."""

    def __init__(self):
        super().__init__()
        self.embed_tokens, self.embed_positions = nn.Embedding(5, 4), nn.Embedding(5, 4)
        self.decoder = nn.ModuleDict({"embed_positions": nn.Embedding(5, 4), "fc1": nn.Linear(4, 4)})
        self.conv, self.norm, self.overhead = nn.Conv1d(4, 4, 1), nn.LayerNorm(4), nn.ModuleDict({"a": nn.Linear(4, 4)})
        self.head, self.ctc_head, self.proj_out = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(4, 5)


def test_default_takes_all_but_heads_and_positions():
    assert quantise(Everything()) == ["embed_tokens", "decoder.fc1", "conv", "overhead.a"]


def test_heads_are_quantised_where_asked_for():
    assert quantise(Everything(), QuantConfig(("default", "head"))) == [
        "embed_tokens", "decoder.fc1", "conv", "overhead.a", "head"
    ]  # fmt: skip


def test_only_targets_change():
    model, plain = recogniser(), recogniser()
    names = quantise(model, QuantConfig((r"encoder\.layers\.1\..*", "convs.0")))
    assert names[0] == "encoder.subsampling.convs.0" and all(".layers.1." in name for name in names[1:])
    assert len(names) == 1 + 4 + 4 + 3
    for name, tensor in plain.state_dict().items():
        if name.rpartition(".")[0] not in names or name.endswith("bias"):
            assert torch.equal(model.state_dict()[name], tensor)
        else:
            assert name not in model.state_dict()


@pytest.mark.parametrize("block, double, expected", [(64, False, 4.5), (128, False, 4.25), (64, True, 4.127)])
def test_bits_per_weight(block, double, expected):
    model = recogniser(width=64)
    quantise(model, QuantConfig(block=block, double=double))
    assert bits_per_weight(model) == pytest.approx(expected, abs=0.01)


def test_packed_parameters_count_as_many():
    model = recogniser()
    before = num_parameters(model)
    assert before == sum(p.numel() for p in model.parameters())
    quantise(model, QuantConfig())
    assert num_parameters(model) == before > sum(p.numel() for p in model.parameters())


def test_dequantise_gives_a_plain_model_that_computes_the_same():
    model, plain = recogniser(), recogniser()
    quantise(model)
    expected = run(model)
    assert is_quantised(model) and dequantise(model) is model and not is_quantised(model)
    assert torch.equal(run(model), expected) and list(model.state_dict()) == list(plain.state_dict())
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]


@pytest.mark.parametrize("double", [False, True])
def test_simulation_computes_the_same_in_plain_layers(double):
    model, simulated = recogniser(), recogniser()
    quantise(model, QuantConfig(double=double))
    quantise(simulated, QuantConfig(double=double, simulate=True))
    assert not is_quantised(simulated) and torch.equal(run(simulated), run(model))


def test_a_layer_under_two_names_is_quantised_once():
    model = nn.ModuleDict({"a": nn.Linear(4, 4)})
    model["b"] = model["a"]
    assert quantise(model) == ["a", "b"] and model["a"] is model["b"]


def test_experts_train_on_a_base_that_stays_bit_for_bit():
    model = recogniser()
    quantise(model)
    before, identity = copy.deepcopy(model.state_dict()), base_identity(model)
    expected = run(model)
    adapter = attach(model, SPEC)
    adapter.check_trainable()
    assert base_identity(model) == identity
    lengths = torch.tensor([8, 6])
    optimiser = torch.optim.Adam(adapter.parameters(), lr=0.05)
    losses = []
    for step in range(12):
        model.train(step % 3 != 1)  # evaluation in between changes nothing
        with adapter.route(lengths=lengths):
            loss = run(model)[..., 1:3].exp().sum().log().neg()
        optimiser.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in adapter.parameters())
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    assert base_identity(model) == identity
    with adapter.disabled():
        assert torch.equal(run(model), expected)
    after = adapter.detach().state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def test_dequantising_below_experts_changes_the_output_by_rounding_only():
    model = recogniser().eval()
    quantise(model)
    adapter = attach(model, SPEC)
    for parameter in adapter.parameters():
        nn.init.normal_(parameter, std=0.3)
    with adapter.route(lengths=torch.tensor([8, 6])), torch.no_grad():
        expected = run(model)
        dequantise(model)
        torch.testing.assert_close(run(model), expected, rtol=1e-5, atol=1e-5)
    adapter.check_trainable()


def test_merging_into_4_bits_is_refused_until_dequantised():
    model = recogniser().eval()
    quantise(model)
    adapter = attach(model, SPEC)
    with pytest.raises(UserError, match="quantised base; dequantise it first"):
        adapter.merged([0.5, 0.5])
    dequantise(model)
    assert not any(isinstance(module, Nf4Layer) for module in adapter.merged([0.5, 0.5]).modules())


def with_experts(model):
    attach(model, SPEC)


def with_a_hole(model):
    with torch.no_grad():
        model.encoder.layers[1].ffn1.up.weight[0, 0] = torch.nan


@pytest.mark.parametrize(
    "prepare, targets, says",
    [
        (with_experts, ("default",), "quantise the model first, then attach"),
        (quantise, ("default",), "4 bits already"),
        (with_a_hole, ("default",), "encoder.layers.1.ffn1.up is not finite"),
        (lambda model: None, ("q_prj",), "'q_prj' matches no .* called q_proj"),
        (lambda model: None, ("ffn1",), "'ffn1' matches no linear"),
        (lambda model: None, ("(",), "no regular expression"),
    ],
)
def test_what_cannot_be_quantised_is_left_as_it_was(prepare, targets, says):
    model = recogniser()
    prepare(model)
    before = {name: id(module) for name, module in model.named_modules()}
    types = [type(module) for module in model.modules()]
    with pytest.raises(UserError, match=says) as error:
        quantise(model, QuantConfig(targets))
    assert "\n" not in str(error.value)
    assert {name: id(module) for name, module in model.named_modules()} == before
    assert [type(module) for module in model.modules()] == types

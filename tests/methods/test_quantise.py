import re

import pytest
import torch
from safetensors.torch import load_file

from moe_asr.config import run_command
from moe_asr.data.features import FeatureConfig
from moe_asr.data.tokens import train_tokens
from moe_asr.errors import UserError
from moe_asr.experts import ExpertSpec, RouterSpec
from moe_asr.files import folder_bytes
from moe_asr.methods.adapt import adapt
from moe_asr.methods.adaptation import AdaptationConfig
from moe_asr.methods.quantise import QuantiseConfig, quantise_folder, stored_bytes
from moe_asr.models.build import ModelConfig, build_model
from moe_asr.models.conformer import ConformerConfig
from moe_asr.models.conformer_ctc import ConformerCTCConfig
from moe_asr.models.folder import FolderConfig, load_model, save_model
from moe_asr.quant import QuantConfig, is_quantised, quantise


@pytest.fixture
def base(tmp_path):
    """Folder of a small recogniser, its widths multiples of the block."""
    torch.manual_seed(0)
    tokens = train_tokens(["a cab", "bad dab"], tmp_path / "lang", "char")
    encoder = ConformerConfig(mels=7, width=64, layers=2, heads=2, kernel=5)
    config = FolderConfig(
        ModelConfig(conformer_ctc=ConformerCTCConfig(encoder, tokens.size)), FeatureConfig(num_mels=7)
    )
    save_model(tmp_path / "base", build_model(config.model), config, tokens)
    return tmp_path / "base"


@pytest.fixture
def packed(base, capsys):
    folder = base.with_name("nf4")
    quantise_folder(QuantiseConfig(str(base), str(folder)))
    return folder


def states(model, adapter=None):
    torch.manual_seed(3)
    with torch.no_grad():
        return model.encode(torch.randn(2, 50, 7), torch.tensor([50, 40]))[0]


def test_weights_shrink_more_than_sevenfold_and_what_is_printed_was_measured(base, packed, capsys):
    loaded, original = load_model(packed), load_model(base)
    names = quantise(original.model)
    assert is_quantised(loaded.model) and loaded.config.quantisation == QuantConfig()
    for name, tensor in original.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor)
    ratio = stored_bytes(base, names) / stored_bytes(packed, names)
    assert ratio == sum(
        w.numel() * 4 for n, w in load_file(base / "model.safetensors").items() if n[:-7] in names
    ) / sum(t.nbytes for n, t in load_file(packed / "model.safetensors").items() if n.endswith((".codes", ".absmax")))
    assert ratio > 7
    printed = capsys.readouterr().out
    assert f"{len(names)} layers in 4.50" in printed and f"{ratio:.2f} times smaller" in printed
    assert f"{folder_bytes(base) / folder_bytes(packed):.2f} times smaller" in printed
    off = float(re.search(r"([\d.]+)% off", printed)[1]) / 100
    assert 0.05 < off < 0.12
    change = float(re.search(r"change by (\S+) relative", printed)[1])
    assert 0 < change < 0.5


def test_simulation_is_said_to_save_nothing(base, capsys):
    quantise_folder(QuantiseConfig(str(base), str(base.with_name("pqm")), QuantConfig(simulate=True)))
    assert "32 (simulated) bits" in (printed := capsys.readouterr().out) and " 1.00 times smaller" in printed
    loaded = load_model(base.with_name("pqm"))
    quantise_folder(QuantiseConfig(str(base), str(base.with_name("nf4"))))
    assert torch.equal(states(loaded.model), states(load_model(base.with_name("nf4")).model))


def test_dequantised_folder_is_a_plain_model_that_computes_the_same(packed, capsys):
    plain = packed.with_name("plain")
    capsys.readouterr()
    quantise_folder(QuantiseConfig(str(packed), str(plain), dequantise=True))
    assert "change by 0 relative, at most 0 absolute" in capsys.readouterr().out
    loaded = load_model(plain)
    assert loaded.config.quantisation is None and not is_quantised(loaded.model)
    assert torch.equal(states(loaded.model), states(load_model(packed).model))


@pytest.mark.parametrize("num_experts, weights", [(1, (1.0,)), (2, (0.25, 0.75))])
def test_experts_are_merged_into_the_dequantised_model(packed, capsys, num_experts, weights):
    router = RouterSpec(route="given", select="all")
    domains = ("north", "south")[:num_experts] if num_experts > 1 else ()
    experts = ExpertSpec(("default",), num_experts, 4, router=router)
    config = AdaptationConfig(experts=experts, domains=domains, global_route="label")
    adapted = adapt(load_model(packed).model, config)
    for parameter in adapted.adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    adapted.eval().save(packed.with_name("lora"))
    with adapted.adapter.route(torch.tensor([weights] * 2), torch.tensor([13, 10])):
        expected = states(adapted.recogniser)
    capsys.readouterr()
    arguments = ["--model", packed, "--out_dir", packed.with_name("plain"), "--dequantise", "true"]
    arguments += ["--adaptation", packed.with_name("lora"), "--weights", list(weights)]
    run_command(QuantiseConfig, quantise_folder, [str(argument) for argument in arguments])
    merged = load_model(packed.with_name("plain"))
    assert not is_quantised(merged.model)
    torch.testing.assert_close(states(merged.model), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, states(load_model(packed).model), atol=1e-2)
    printed = capsys.readouterr().out
    assert "merged in" in printed and 0 <= float(re.search(r"change by (\S+) relative", printed)[1]) < 1e-4


@pytest.mark.parametrize(
    "change, says",
    [
        ({"model": "nowhere"}, "no model folder at nowhere"),
        ({"model": "nf4"}, "nf4 is quantised already"),
        ({"dequantise": True}, "base is not quantised"),
        ({"out_dir": "base"}, "out_dir is the model itself"),
        ({"adaptation": "lora"}, "adaptation is for dequantise"),
        ({"model": "nf4", "dequantise": True, "weights": (1.0,)}, "weights are of experts: give their adaptation too"),
        ({"model": "nf4", "dequantise": True, "adaptation": "lora"}, "no adaptation in lora"),
        ({"quantisation": QuantConfig(("nothing",))}, "'nothing' matches no"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(packed, monkeypatch, change, says):
    monkeypatch.chdir(packed.parent)
    with pytest.raises(UserError, match=says) as error:
        quantise_folder(QuantiseConfig(**{"model": "base", "out_dir": "new", **change}))
    assert "\n" not in str(error.value) and not (packed.parent / "new").exists()

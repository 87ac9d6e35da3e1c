import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from moe_asr.config import load_config, save_config
from moe_asr.data.features import FeatureConfig
from moe_asr.data.tokens import train_tokens
from moe_asr.errors import UserError
from moe_asr.experts import base_identity
from moe_asr.models.build import ModelConfig, build_model
from moe_asr.models.conformer_ctc import ConformerCTCConfig
from moe_asr.models.domain_classifier import DomainClassifierConfig
from moe_asr.models.encoders import EncoderConfig
from moe_asr.models.folder import FolderConfig, load_model, save_model, tensor_bytes
from moe_asr.quant import QuantConfig, is_quantised, quantise


@pytest.fixture
def saved(tiny, tmp_path):
    """A saved recogniser: folder, model, configuration."""
    torch.manual_seed(0)
    tokens = train_tokens(["a cab", "bad dab"], tmp_path / "lang", "char")
    config = FolderConfig(
        ModelConfig(conformer_ctc=ConformerCTCConfig(tiny, tokens.size)), FeatureConfig(num_mels=7), "english"
    )
    model = build_model(config.model)
    save_model(tmp_path / "exp/final", model, config, tokens)
    return tmp_path / "exp/final", model, config


def test_comes_back_the_same(saved):
    folder, model, config = saved
    loaded = load_model(folder)
    assert loaded.config == config and loaded.tokens.decode(loaded.tokens.encode("bad")) == "bad"
    assert not loaded.model.training and all(p.requires_grad for p in loaded.model.parameters())
    for (name, a), (other, b) in zip(model.state_dict().items(), loaded.model.state_dict().items(), strict=True):
        assert name == other and torch.equal(a, b) and a.dtype == b.dtype
    assert sorted(p.name for p in folder.iterdir()) == ["config.yaml", "model.safetensors", "tokens"]


def test_another_process_computes_the_same(saved):
    folder, model, _ = saved
    code = (
        "import sys, torch; from moe_asr.models.folder import load_model; torch.manual_seed(1); "
        "model = load_model(sys.argv[1]).model; torch.manual_seed(7); x = torch.randn(1, 30, 7); "
        "print(model.log_probs(x, torch.tensor([30]))[0].double().abs().sum().item())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    torch.manual_seed(7)
    log_probs, _ = model.eval().log_probs(torch.randn(1, 30, 7), torch.tensor([30]))
    assert float(done.stdout) == pytest.approx(log_probs.double().abs().sum().item(), rel=1e-6)


def test_classifier_keeps_its_domains_and_has_no_tokens(tiny, tmp_path):
    config = FolderConfig(
        ModelConfig(domain_classifier=DomainClassifierConfig(EncoderConfig(tiny), domains=("south", "north"))),
        FeatureConfig(num_mels=7),
    )
    save_model(tmp_path / "ar", build_model(config.model), config)
    loaded = load_model(tmp_path / "ar")
    assert loaded.model.domains == ("south", "north") and loaded.tokens is None
    assert not (tmp_path / "ar/tokens").exists()


@pytest.mark.parametrize("quantisation", [QuantConfig(), QuantConfig(("up", "head"), 32, double=True)])
def test_quantised_model_comes_back_the_same(saved, quantisation):
    folder, model, config = saved
    tokens, config = load_model(folder).tokens, replace(config, quantisation=quantisation)
    quantise(model.eval(), quantisation)
    save_model(folder, model, config, tokens)
    loaded = load_model(folder)
    assert loaded.config == config and is_quantised(loaded.model)
    for (name, a), (other, b) in zip(model.state_dict().items(), loaded.model.state_dict().items(), strict=True):
        assert name == other and torch.equal(a, b) and a.dtype == b.dtype
    batch = torch.randn(1, 30, 7), torch.tensor([30])
    assert torch.equal(loaded.model.log_probs(*batch)[0], model.log_probs(*batch)[0])
    assert base_identity(loaded.model) == base_identity(model)


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda s: s.pop("encoder.layers.0.ffn1.up.absmax"), "lacks encoder.layers.0.ffn1.up.absmax$"),
        (lambda s: s.update({"encoder.layers.0.ffn1.up.weight": torch.zeros(36, 12)}), "unexpected .*up.weight$"),
        (lambda s: s.update({n: s[n].float() for n in s if n.endswith("0.ffn1.up.codes")}), "float32, expected .*int8"),
        (lambda s: s.update({n: s[n][:-1].clone() for n in s if n.endswith("0.ffn1.up.codes")}), r"\(215,\), expected"),
    ],
)
def test_damage_to_a_quantised_model_is_refused(saved, change, says):
    folder, model, config = saved
    tokens = load_model(folder).tokens
    quantise(model)
    with pytest.raises(UserError, match="lacks .*weight"):
        save_model(folder, model, config, tokens)
    save_model(folder, model, replace(config, quantisation=QuantConfig()), tokens)
    change_weights(folder, change)
    with pytest.raises(UserError, match=says):
        load_model(folder)


def test_bytes_of_tensors_are_those_in_the_file(saved):
    folder, model, _ = saved
    assert tensor_bytes(folder) == {name: tensor.nbytes for name, tensor in model.state_dict().items()}


def test_saving_replaces_the_old_one(saved, tmp_path):
    folder, model, config = saved
    tokens = load_model(folder).tokens
    with torch.no_grad():
        model.head.bias += 1
    (folder / "stale").touch()
    save_model(folder, model, config, tokens)
    assert torch.equal(load_model(folder).model.head.bias, model.head.bias)
    assert not (folder / "stale").exists()


def test_model_with_foreign_layers_is_not_saved(saved):
    folder, model, config = saved
    tokens = load_model(folder).tokens
    model.head = torch.nn.Sequential(model.head)
    with pytest.raises(UserError, match="lacks head.bias .and 1 more."):
        save_model(folder, model, config, tokens)
    load_model(folder)


def change_weights(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def remove_folder(folder):
    folder.rename(folder.with_name("elsewhere"))


def other_tokens(folder):
    train_tokens(["entirely other text"], folder / "tokens", "char")


def other_mels(folder):
    config = load_config(FolderConfig, folder / "config.yaml")
    save_config(FolderConfig(config.model, FeatureConfig(num_mels=80)), folder / "config.yaml")


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize(
    "damage, says",
    [
        (remove_folder, "no model folder at .*final"),
        (lambda f: (f / "config.yaml").unlink(), "no config.yaml"),
        (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors"),
        (lambda f: (f / "tokens/tokens.model").unlink(), "no tokens at"),
        (lambda f: change_weights(f, lambda s: s.pop("head.bias")), "lacks head.bias$"),
        (lambda f: change_weights(f, lambda s: s.update(extra=torch.zeros(1))), "unexpected extra$"),
        (
            lambda f: change_weights(f, lambda s: s.update({"head.bias": torch.zeros(2)})),
            r"head.bias is \(2,\), expected",
        ),
        (truncate, "damaged"),
        (other_tokens, "vocab_size"),
        (other_mels, "mel"),
        (lambda f: (f / "config.yaml").write_text("model: {conformer: {}}\n"), "conformer"),
    ],
)
def test_damage_is_refused_in_one_line(saved, damage, says):
    folder, _, _ = saved
    damage(folder)
    with pytest.raises(UserError, match=says) as error:
        load_model(folder)
    assert "\n" not in str(error.value)

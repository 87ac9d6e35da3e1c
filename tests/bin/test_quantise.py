import pytest
import torch

from moe_asr.bin.quantise import QuantiseConfig, quantise_folder
from moe_asr.config import run_command
from moe_asr.data.features import FeatureConfig
from moe_asr.models.build import ModelConfig, build_model
from moe_asr.models.conformer import ConformerConfig
from moe_asr.models.domain_classifier import DomainClassifierConfig
from moe_asr.models.encoders import EncoderConfig
from moe_asr.models.folder import FolderConfig, load_model, save_model


def run(*arguments):
    run_command(QuantiseConfig, quantise_folder, [str(argument) for argument in arguments])


def test_there_and_back(tmp_path, capsys):
    torch.manual_seed(0)
    classifier = DomainClassifierConfig(
        EncoderConfig(ConformerConfig(mels=7, width=64, layers=1, heads=2)), domains=("a", "b")
    )
    config = FolderConfig(ModelConfig(domain_classifier=classifier), FeatureConfig(num_mels=7))
    save_model(tmp_path / "base", build_model(config.model), config)
    run("--model", tmp_path / "base", "--out_dir", tmp_path / "nf4", "--quantisation.block", 32)
    assert "5.000 bits per weight" in capsys.readouterr().out
    run("--model", tmp_path / "nf4", "--out_dir", tmp_path / "plain", "--dequantise", "true")
    packed, plain = load_model(tmp_path / "nf4"), load_model(tmp_path / "plain")
    assert packed.config.quantisation.block == 32
    assert torch.equal(packed.model.encoder.layers[0].ffn1.up.weight, plain.model.encoder.layers[0].ffn1.up.weight)


def test_missing_model_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        run("--model", tmp_path / "none", "--out_dir", tmp_path / "new")
    assert caught.value.code == 1 and capsys.readouterr().err == f"error: no model folder at {tmp_path}/none\n"

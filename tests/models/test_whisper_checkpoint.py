import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from moe_asr.errors import UserError
from moe_asr.models.whisper_checkpoint import read_checkpoint


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "whisper"}')
    save_file({"model.a": torch.ones(2, dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    return tmp_path


def test_settings_for_generation_are_those_of_the_model_if_there_are_none(folder):
    checkpoint = read_checkpoint(str(folder))
    assert checkpoint.generation == checkpoint.config == {"model_type": "whisper"}
    assert checkpoint.state.keys() == {"a"} and checkpoint.state["a"].dtype == torch.float32
    (folder / "generation_config.json").write_text('{"suppress_tokens": [3]}')
    assert read_checkpoint(str(folder)).generation == {"suppress_tokens": [3]}


@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_damaged_files_are_named(folder, name):
    (folder / name).write_text("{,}")
    with pytest.raises(UserError, match=f"{name} is damaged"):
        read_checkpoint(str(folder))


def test_another_checkpoint_is_refused(folder):
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="is no Whisper checkpoint: its model_type is bert"):
        read_checkpoint(str(folder))


def test_a_hub_name_without_a_network_is_one_line(tmp_path):
    pytest.importorskip("huggingface_hub")
    command = [sys.executable, "-m", "moe_asr.bin.import_whisper", "--source", "some/whisper", "--out_dir", "nowhere"]
    offline = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ":".join(sys.path)}
    run = subprocess.run(command, capture_output=True, text=True, env=offline)
    assert run.returncode == 1 and run.stderr.count("\n") == 1
    assert run.stderr.startswith("error: cannot fetch some/whisper from the Hugging Face hub")
    assert "run `hf download some/whisper`" in run.stderr and "HF_HOME" in run.stderr

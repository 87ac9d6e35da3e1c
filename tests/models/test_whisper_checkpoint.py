import json
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


def test_pickled_weights_are_not_read(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="has no model.safetensors: take a checkpoint with weights as safetensors"):
        read_checkpoint(str(folder))
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="pytorch_model.bin is not read, since loading pickled weights can run code"):
        read_checkpoint(str(folder))


def test_all_shards_are_needed_and_lie_beside_the_index(folder):
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.a": "model.safetensors", "model.b": "second.safetensors"}}))
    with pytest.raises(UserError, match="has no second.safetensors"):
        read_checkpoint(str(folder))
    save_file({"model.b": torch.zeros(1)}, folder / "second.safetensors")
    assert read_checkpoint(str(folder)).state.keys() == {"a", "b"}
    for weight_map in ({}, {"model.a": "../model.safetensors"}):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(UserError, match="it names no files beside it"):
            read_checkpoint(str(folder))


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("config.json", "{", "config.json is damaged"),
        ("config.json", "[1]", "config.json is damaged"),
        ("generation_config.json", "{,}", "generation_config.json is damaged"),
        ("model.safetensors", "12345678", "model.safetensors is damaged"),
    ],
)
def test_damaged_files_are_named(folder, name, content, message):
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        read_checkpoint(str(folder))
    assert "\n" not in str(caught.value)


def test_what_is_no_checkpoint_is_one_line(tmp_path):
    with pytest.raises(UserError, match="is not a checkpoint of transformers: it has no config.json"):
        read_checkpoint(str(tmp_path))
    with pytest.raises(UserError, match="there is no folder .*/nothing, and it is no name on the Hugging Face hub"):
        read_checkpoint(str(tmp_path / "nothing"))


def test_a_hub_name_without_a_network_is_one_line(tmp_path):
    pytest.importorskip("huggingface_hub")
    command = [sys.executable, "-m", "moe_asr.bin.import_whisper", "--source", "some/whisper", "--out_dir", "nowhere"]
    offline = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ":".join(sys.path)}
    run = subprocess.run(command, capture_output=True, text=True, env=offline)
    assert run.returncode == 1 and run.stderr.count("\n") == 1
    assert run.stderr.startswith("error: cannot fetch some/whisper from the Hugging Face hub")
    assert "run `hf download some/whisper`" in run.stderr and "HF_HOME" in run.stderr


def test_a_hub_name_in_the_cache_needs_no_network(folder, tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append((name, set(allow_patterns)))
        if "model.safetensors" in allow_patterns:
            save_file({"model.a": torch.ones(2)}, folder / "model.safetensors")
        return str(folder)

    (folder / "model.safetensors").unlink()
    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path.parent)
    assert read_checkpoint("openai/some-whisper").state.keys() == {"a"}
    assert [name for name, _ in asked] == ["openai/some-whisper"] * 2
    for _, patterns in asked:
        assert not [name for name in patterns if "*" in name or name.endswith((".bin", ".py", ".pt"))]

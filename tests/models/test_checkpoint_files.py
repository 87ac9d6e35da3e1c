import json

import pytest
import torch
from safetensors.torch import save_file

from moe_asr.errors import UserError
from moe_asr.models.checkpoint_files import CONFIG, checkpoint_folder, read_json, read_weights


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "some"}')
    save_file({"a": torch.ones(2, dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    return tmp_path


def read(folder):
    found = checkpoint_folder(str(folder))
    return read_json(found / CONFIG, str(folder)), read_weights(str(folder), found)


def test_a_folder_is_read_as_it_is(folder):
    config, state = read(folder)
    assert config == {"model_type": "some"} and state.keys() == {"a"} and state["a"].dtype == torch.bfloat16


def test_pickled_weights_are_not_read(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="has no model.safetensors: take a checkpoint with weights as safetensors"):
        read(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="pytorch_model.bin is not read, since loading pickled weights can run code"):
        read(folder)


def test_all_shards_are_needed_and_lie_beside_the_index(folder):
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": "second.safetensors"}}))
    with pytest.raises(UserError, match="has no second.safetensors"):
        read(folder)
    save_file({"b": torch.zeros(1)}, folder / "second.safetensors")
    assert read(folder)[1].keys() == {"a", "b"}
    for weight_map in ({}, {"a": "../model.safetensors"}):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(UserError, match="it names no files beside it"):
            read(folder)


def test_quantised_weights_are_refused(folder):
    save_file({"a": torch.ones(2, dtype=torch.int8)}, folder / "model.safetensors")
    with pytest.raises(UserError, match="a is torch.int8; quantised checkpoints are not taken over"):
        read(folder)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("config.json", "{", "config.json is damaged"),
        ("config.json", "[1]", "config.json is damaged"),
        ("model.safetensors", "12345678", "model.safetensors is damaged"),
    ],
)
def test_damaged_files_are_named(folder, name, content, message):
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        read(folder)
    assert "\n" not in str(caught.value)


def test_what_is_no_checkpoint_is_one_line(tmp_path):
    with pytest.raises(UserError, match="is not a checkpoint of transformers: it has no config.json"):
        read(tmp_path)
    with pytest.raises(UserError, match="there is no folder .*/nothing, and it is no name on the Hugging Face hub"):
        read(tmp_path / "nothing")


def test_a_hub_name_in_the_cache_needs_no_network(folder, tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append((name, set(allow_patterns)))
        if "model.safetensors" in allow_patterns:
            save_file({"a": torch.ones(2)}, folder / "model.safetensors")
        return str(folder)

    (folder / "model.safetensors").unlink()
    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path.parent)
    found = checkpoint_folder("some/model", ("tokenizer.json",))
    assert read_weights("some/model", found).keys() == {"a"}
    assert [name for name, _ in asked] == ["some/model"] * 2 and "tokenizer.json" in asked[0][1]
    for _, patterns in asked:
        assert not [name for name in patterns if "*" in name or name.endswith((".bin", ".py", ".pt"))]

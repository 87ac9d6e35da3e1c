import json
import subprocess
import sys

import pytest
import torch
from models import SPECS, Tower, fill
from safetensors.torch import load_file, save_file

from moe_asr.errors import UserError
from moe_asr.experts import (
    ExpertLinear,
    adapter_identity,
    attach,
    base_identity,
    load_adapter,
    read_adapter_info,
    save_adapter,
)


def saved(tmp_path, name="hdmole"):
    model = Tower()
    adapter = attach(model, SPECS[name])
    fill(adapter)
    save_adapter(adapter, tmp_path / "a", {"domains": ["x", "y", "z"]})
    return model, adapter, tmp_path / "a"


@pytest.mark.parametrize("name", SPECS)
def test_round_trip_is_exact(tmp_path, name):
    model, adapter, folder = saved(tmp_path, name)
    again = Tower()
    loaded = load_adapter(again, folder)
    assert loaded.specs == adapter.specs
    assert adapter_identity(loaded) == adapter_identity(adapter)
    x, lengths = torch.randn(3, 7, 12), torch.tensor([7, 3, 5])
    with adapter.route(torch.tensor([0, 2, 1]), lengths), loaded.route(torch.tensor([0, 2, 1]), lengths):
        assert torch.equal(model(x), again(x))
    assert sorted(p.name for p in folder.iterdir()) == ["adapter.json", "adapter.safetensors"]
    info = read_adapter_info(folder)
    assert info["about"] == {"domains": ["x", "y", "z"]} and info["parameters"] == adapter.num_parameters()


def test_a_new_process_gives_the_same_outputs(tmp_path):
    model, adapter, folder = saved(tmp_path)
    torch.manual_seed(5)
    with adapter.route(torch.tensor([0, 2, 1]), torch.tensor([7, 3, 5])):
        save_file({"y": model(torch.randn(3, 7, 12)).detach()}, tmp_path / "y")
    code = f"""
import sys, torch
sys.path.insert(0, {str(__import__("pathlib").Path(__file__).parent)!r})
from models import Tower
from moe_asr.experts import load_adapter
from safetensors.torch import load_file
model = Tower()
adapter = load_adapter(model, {str(folder)!r})
torch.manual_seed(5)
with adapter.route(torch.tensor([0, 2, 1]), torch.tensor([7, 3, 5])):
    assert torch.equal(model(torch.randn(3, 7, 12)), load_file({str(tmp_path / "y")!r})['y'])
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_identity_sees_every_bit_and_no_experts():
    model = Tower()
    identity = base_identity(model)
    adapter = attach(model, SPECS["hdmole"])
    fill(adapter)
    assert base_identity(model) == identity == base_identity(Tower())
    with torch.no_grad():
        model.layers[1].up.base.weight[0, 0] += 1e-6
    assert base_identity(model) != identity
    assert base_identity(Tower().double()) != identity


def rewrite(folder, change):
    state = load_file(folder / "adapter.safetensors")
    change(state)
    save_file(state, folder / "adapter.safetensors")


def test_anything_but_an_exact_fit_is_refused_and_leaves_the_model_alone(tmp_path):
    def refused(says):
        model = Tower()
        with pytest.raises(UserError, match=says) as error:
            load_adapter(model, folder)
        assert "\n" not in str(error.value)
        assert not any(isinstance(m, ExpertLinear) for m in model.modules())
        assert all(p.requires_grad for p in model.parameters())

    _, _, folder = saved(tmp_path)
    state = load_file(folder / "adapter.safetensors")
    rewrite(folder, lambda s: s.pop("layers.0.up.A"))
    refused("the adapter lacks layers.0.up.A")
    save_file({**state, "layers.9.up.A": torch.zeros(1)}, folder / "adapter.safetensors")
    refused("the model has no place for layers.9.up.A")
    save_file({**state, "layers.0.up.A": torch.zeros(3, 1, 12)}, folder / "adapter.safetensors")
    refused("layers.0.up.A has shape")
    data = (folder / "adapter.safetensors").read_bytes()
    (folder / "adapter.safetensors").write_bytes(data[:-7])
    refused("damaged")
    (folder / "adapter.safetensors").unlink()
    refused("adapter.safetensors is missing")
    info = json.loads((folder / "adapter.json").read_text())
    (folder / "adapter.json").write_text(json.dumps({**info, "base": "0" * 64}))
    refused("another base model")
    (folder / "adapter.json").write_text(json.dumps({**info, "format": 99}))
    refused("update moe_asr")
    save_file(state, folder / "adapter.safetensors")
    bad = {**info["specs"][0], "rnak": 2}
    (folder / "adapter.json").write_text(json.dumps({**info, "specs": [bad]}))
    refused("rnak")
    for text in ("{", "[]", "{}", '{"format": "x", "specs": [], "base": ""}'):
        (folder / "adapter.json").write_text(text)
        refused("damaged or not an adapter")
    (folder / "adapter.json").unlink()
    refused("no adapter in")


def test_another_base_of_the_same_shape_is_refused(tmp_path):
    _, _, folder = saved(tmp_path)
    with pytest.raises(UserError, match="another base model"):
        load_adapter(Tower(seed=1), folder)

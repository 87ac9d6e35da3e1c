"""Folders of tokens, adapters and checkpoints: exact, or refused in one line."""

import json
from types import SimpleNamespace

import pytest
import torch
from hostile import REFUSED, altered, attempt, damaged, hostile
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from moe_asr.data.llm_tokens import LLMTokens
from moe_asr.data.text_batches import read_pairs
from moe_asr.data.tokens import Tokens, train_tokens
from moe_asr.data.unit_tokens import build_tokenizer, save_tokenizer
from moe_asr.experts import read_adapter_info, read_adapter_tensors
from moe_asr.experts.peft_format import import_expert
from moe_asr.models.checkpoint_files import read_json, read_weights
from moe_asr.training.checkpoint import MODEL, read_state, read_tensors, write_checkpoint

TENSORS = {"a.A": torch.arange(12.0).view(3, 4), "a.B": torch.ones(2, 3)}
INFO = {"format": 1, "specs": [{"targets": ["a"]}], "base": "0" * 64, "about": {"domains": ["x"]}, "domain_width": 3}
PAIR = b'{"source": "[d] [a]", "target": "da"}\n'
PEFT = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "bias": "none", "rank_pattern": {}, "use_dora": False}


@hostile
@given(content=st.one_of(altered(INFO), damaged(json.dumps(INFO).encode())))
def test_adapter_description(content, tmp_path):
    (tmp_path / "adapter.json").write_bytes(content)
    info = attempt(read_adapter_info, tmp_path)
    assert info is REFUSED or (info["format"] == 1 and all(isinstance(spec, dict) for spec in info["specs"]))


@hostile
@given(content=damaged(save(TENSORS)))
def test_tensors(content, tmp_path):
    for name in ("adapter.safetensors", "model.safetensors", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes(content)
    found = attempt(read_adapter_tensors, tmp_path)
    weights = attempt(read_weights, str(tmp_path), tmp_path)
    assert found is REFUSED or weights is REFUSED or found.keys() == weights.keys()
    if found is not REFUSED:  # no tensor is larger than the file
        assert sum(tensor.numel() * tensor.element_size() for tensor in found.values()) <= len(content)


@hostile
@given(content=st.one_of(altered(PEFT), damaged(json.dumps(PEFT).encode())))
def test_description_of_peft(content, tmp_path):
    tensors = {
        "base_model.model.a.lora_A.weight": torch.ones(3, 4),
        "base_model.model.a.lora_B.weight": torch.ones(2, 3),
    }
    (tmp_path / "adapter_config.json").write_bytes(content)
    (tmp_path / "adapter_model.safetensors").write_bytes(save(tensors))
    given_experts = {}
    layer = SimpleNamespace(spec=SimpleNamespace(rank=4, scale=2.0))
    adapter = SimpleNamespace(layers={"a": layer}, set_expert=lambda index, expert: given_experts.update(expert))
    if attempt(import_expert, adapter, 0, tmp_path) is not REFUSED:
        A_RI, B_RO = given_experts["a"]
        assert torch.isfinite(A_RI).all() and torch.isfinite(B_RO).all()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "step-00000003"
    write_checkpoint(folder, TENSORS, {}, {"milestone": True, "valid": 1.5, "step": 3})
    return folder


@hostile
@given(data=st.data())
def test_checkpoint(data, checkpoint, tmp_path):
    """Whatever happens to it, what is read is what was written: all of it has a checksum."""
    name = data.draw(st.sampled_from(["state.json", MODEL]))
    for path in checkpoint.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / name).write_bytes(data.draw(damaged((checkpoint / name).read_bytes())))
    state = attempt(read_state, tmp_path)
    assert state is REFUSED or state == {"milestone": True, "valid": 1.5, "step": 3}
    tensors = attempt(read_tensors, tmp_path, MODEL)
    assert tensors is REFUSED or all(torch.equal(tensors[key], TENSORS[key]) for key in TENSORS | tensors)


@pytest.fixture(scope="module")
def sentencepiece_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    train_tokens(["one two three", "three four"], folder, "char")
    return (folder / "tokens.model").read_bytes()


@hostile
@given(data=st.data())
def test_tokens(data, sentencepiece_model, tmp_path):
    (tmp_path / "tokens.model").write_bytes(data.draw(damaged(sentencepiece_model)))
    tokens = attempt(Tokens, tmp_path)
    if tokens is not REFUSED:
        ids = tokens.encode("one four")
        assert all(0 <= index < tokens.size for index in ids) and isinstance(tokens.decode(ids), str)


@pytest.fixture(scope="module")
def tokenizer_json(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(build_tokenizer(["ab", "c"], ["[zh]", "[a]"], "say <speech>:"), folder)
    return (folder / "tokenizer.json").read_bytes()


@hostile
@given(data=st.data())
def test_tokenizer_json(data, tokenizer_json, tmp_path):
    content = data.draw(st.one_of(damaged(tokenizer_json), altered(json.loads(tokenizer_json))))
    (tmp_path / "tokenizer.json").write_bytes(content)
    tokens = attempt(LLMTokens, tmp_path)
    if tokens is not REFUSED:
        assert 0 < tokens.size < 100_000 and all(isinstance(tokens.piece(i), str) for i in range(tokens.size))


@hostile
@given(content=st.one_of(altered({"a": {"b": [1]}}), damaged(b'{"weight_map": {"a": "b"}}')))
def test_json_of_checkpoints(content, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    found = attempt(read_json, tmp_path / "config.json", "source")
    assert found is REFUSED or isinstance(found, dict)


@hostile
@given(
    content=st.one_of(damaged(b'{"source": "[d] [a]", "target": "da"}\n'), altered({"source": "[d]", "target": "d"}))
)
def test_pairs(content, tmp_path):
    (tmp_path / "pairs.jsonl").write_bytes(content)
    pairs = attempt(read_pairs, [str(tmp_path / "pairs.jsonl")])
    assert pairs is REFUSED or all(pair.source and pair.target for pair in pairs)

"""Two processes with a share each of the frozen language model train as one does that has all of it."""

import os
from dataclasses import replace

import pytest
import torch
import torch._dynamo  # noqa: F401, which the optimiser would import anew in each process
from safetensors.torch import load_file
from several import run, trace
from torch.distributed.tensor import DTensor

from moe_asr.config import load_config
from moe_asr.data.manifests import read_manifests, write_manifest
from moe_asr.errors import UserError
from moe_asr.experts import ExpertSpec, RouterSpec
from moe_asr.methods.adaptation import AdaptationConfig
from moe_asr.models.folder import load_model
from moe_asr.training.loop import Trainer
from moe_asr.training.run import RunConfig, train
from moe_asr.training.update import Updater


@pytest.fixture
def config(corpus, base, tmp_path):
    """Of 12 utterances in batches of 2, and 3 batches an update, the second process has one less than the first; for
    validation it has none."""
    (tmp_path / "run.yaml").write_text((corpus / "lora.yaml").read_text() + f"exp_dir: {tmp_path / 'one'}\n")
    found = load_config(RunConfig, tmp_path / "run.yaml")
    write_manifest(tmp_path / "valid.jsonl", read_manifests([str(corpus / "all.jsonl")])[:1])
    return replace(
        found,
        init=str(base),
        adaptation=None,
        valid=replace(found.valid, manifests=[str(tmp_path / "valid.jsonl")]),
        train=replace(found.train, accumulate=3, log_every=1, save_every=1),
        shard_frozen=True,
    )


def experts_on(where):
    router = RouterSpec(route="local", select="threshold")
    return AdaptationConfig(experts=ExpertSpec((where,), num_experts=2, rank=1, dropout=0.1, router=router))


def shares_are_halves(rank):
    """Looks at what a process holds when training begins."""
    begin = Trainer.train

    def look(trainer):
        layers = [p for name, p in trainer.model.named_parameters() if ".layers." in f".{name}" and "lm." in name]
        frozen = [p for p in layers if not p.requires_grad]
        assert frozen and all(isinstance(p, DTensor) for p in frozen)
        held = sum(p.to_local().numel() for p in frozen) / sum(p.numel() for p in frozen)
        assert 0.4 < held < 0.6, held
        assert not any(isinstance(p, DTensor) for p in layers if p.requires_grad)
        begin(trainer)

    Trainer.train = look


CHANGES = {
    "projector": {},
    "experts on it": {"adaptation": experts_on(r"projector\.linear[12]")},
    "experts on the language model": {"adaptation": experts_on(r"lm\..*\.[qv]_proj")},
    "checkpointing": {"gradient_checkpointing": True},
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_shares_train_as_the_whole(config, tmp_path, changes):
    config = replace(config, **changes)
    train(replace(config, shard_frozen=False))
    two = replace(config, exp_dir=str(tmp_path / "two"))
    assert run(two, 2, shares_are_halves) == ([0, 0], ["", ""])
    one, many = trace(tmp_path / "one"), trace(tmp_path / "two")
    losses = [[r.get("loss") or r["valid"]["loss"] for r in records] for records in (one, many)]
    assert len(losses[0]) == 6 and losses[0] == pytest.approx(losses[1], rel=1e-5)
    name = "final/adapter/adapter.safetensors" if config.adaptation else "final/model.safetensors"
    weights = load_file(tmp_path / "two" / name)
    for key, tensor in load_file(tmp_path / "one" / name).items():
        torch.testing.assert_close(tensor, weights[key], rtol=1e-4, atol=1e-6)
    if not config.adaptation:  # a folder like any other
        assert os.path.samefile(tmp_path / "two/final/frozen.safetensors", tmp_path / "one/final/frozen.safetensors")
        load_model(tmp_path / "two/final")


def test_a_batch_that_does_not_fit_ends_both_with_the_reason(config, tmp_path):
    def full(rank):
        def forward(self, batch, generator):
            raise MemoryError

        if rank == 1:
            Updater.forward = forward

    codes, said = run(config, 2, full)
    assert codes == [1, 1] and all("with shard_frozen no batch is computed in parts" in text for text in said), said


def test_one_process_shares_with_nobody(config, tmp_path):
    train(config)
    train(replace(config, exp_dir=str(tmp_path / "other"), shard_frozen=False))
    assert trace(tmp_path / "one") == trace(tmp_path / "other")


def test_what_cannot_be_shared_is_one_line(config, corpus):
    with pytest.raises(UserError, match="it is for a speech_llm"):
        train(replace(config, init=str(corpus / "base"), adaptation=experts_on(".*q_proj")))

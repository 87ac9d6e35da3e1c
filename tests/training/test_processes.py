"""Training by several processes is training by one, only faster."""

import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch._dynamo  # noqa: F401, which the optimiser would import anew in each process
from safetensors.torch import load_file
from several import run, trace

from moe_asr.config import load_config, save_config
from moe_asr.methods.adaptation import AdaptationConfig
from moe_asr.methods.saml import SamlConfig
from moe_asr.training.optimizer import GroupConfig, OptimConfig
from moe_asr.training.run import RunConfig, train
from moe_asr.training.update import Updater

SAML = AdaptationConfig(saml=SamlConfig(num_experts=3, dropout=0.3))
ALTERNATING = OptimConfig(alternate=True, groups=(GroupConfig("router"), GroupConfig(".")))


@pytest.fixture
def config(corpus, tmp_path):
    """One expert for each speaker; of 12 utterances in batches of 2, a process sees at most some in an update."""
    (tmp_path / "run.yaml").write_text((corpus / "lora.yaml").read_text() + f"exp_dir: {tmp_path / 'one'}\n")
    found = load_config(RunConfig, tmp_path / "run.yaml")
    experts = replace(found.adaptation.experts, num_experts=3)
    data = replace(found.data, domain_key="speaker")
    loop = replace(found.train, accumulate=2, log_every=1, save_every=1, keep_checkpoints=99)
    return replace(
        found,
        adaptation=replace(
            found.adaptation, experts=experts, domains=("s0", "s1", "s2"), domain_key="speaker", global_route="label"
        ),
        data=data,
        valid=data,
        train=loop,
    )


def weights(folder):
    return load_file(Path(folder) / "final/adapter/adapter.safetensors")


def at_update(number, what):
    """Has `what(rank)` called in the middle of that update, between the gradients of a batch and their sum."""

    def patch(rank):
        forward, count = Updater.forward, [0]

        def counted(self, batch, generator):
            count[0] += generator is not None
            if count[0] == number and generator is not None:
                what(rank)
            return forward(self, batch, generator)

        Updater.forward = counted

    return patch


def kill_second(rank):
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("changes", [{}, {"adaptation": SAML, "optim": ALTERNATING}])
def test_two_processes_with_a_batch_each_are_one_with_two_bit_for_bit(config, tmp_path, changes):
    """Among them: dropout, an expert that no batch of a process was sent to, optimisers that take turns."""
    changes = dict(changes)
    config = replace(config, train=replace(config.train, optim=changes.pop("optim", config.train.optim)), **changes)
    train(config)
    two = replace(config, exp_dir=str(tmp_path / "two"))
    assert run(two, 2) == ([0, 0], ["", ""])
    assert len(trace(tmp_path / "one")) == 3 + 1 + 3 + 1 and trace(tmp_path / "one") == trace(tmp_path / "two")
    one, other = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (tmp_path / "two/train.log").read_text().count("step 1:") == 1  # one process writes


@pytest.mark.parametrize(("count", "accumulate"), [(2, 5), (3, 4)])
def test_uneven_shares_are_the_same_to_rounding(config, tmp_path, count, accumulate):
    """Of 6 batches by 5 the last is an update of its own, in which the second process has nothing."""
    config = replace(config, train=replace(config.train, accumulate=accumulate))
    train(config)
    assert run(replace(config, exp_dir=str(tmp_path / "many")), count)[0] == [0] * count
    one, many = trace(tmp_path / "one"), trace(tmp_path / "many")
    assert [r["batch"] for r in one] == [r["batch"] for r in many]
    losses = [[r.get("loss") or r["valid"]["loss"] for r in records] for records in (one, many)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for name, tensor in weights(tmp_path / "one").items():
        torch.testing.assert_close(tensor, weights(tmp_path / "many")[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2)])
def test_goes_on_with_another_number_of_processes(config, tmp_path, first, then):
    """Killed in its third update, 2 checkpoints on; the rest is what it would have been."""
    train(config)
    parts = replace(config, exp_dir=str(tmp_path / "parts"))
    call = 3 if first == 2 else 5
    codes, said = run(parts, first, at_update(call, kill_second if first == 2 else lambda rank: os._exit(9)))
    assert not (tmp_path / "parts/final").exists()
    assert codes == ([1, -9] if first == 2 else [9]), said
    assert run(parts, then) == ([0] * then, [""] * then)
    assert "going on from step-00000002" in (tmp_path / "parts/train.log").read_text()
    assert trace(tmp_path / "one") == trace(tmp_path / "parts")
    assert all(torch.equal(t, weights(tmp_path / "parts")[name]) for name, t in weights(tmp_path / "one").items())


def test_a_lost_process_stops_the_others_with_its_reason(config, tmp_path):
    codes, (said, _) = run(config, 2, at_update(2, kill_second))
    assert codes == [1, -9] and said.count("\n") == 1
    assert re.match(r"error: process 1 of 2 has ended without a word .*the same command goes on from the last", said)
    assert "stopped: process 1 of 2 has ended" in (tmp_path / "one/train.log").read_text()

    def full(rank):
        if rank == 1:
            raise OSError(28, "No space left on device", "/tmp/somewhere")

    codes, (said, own) = run(config, 2, at_update(2, full))
    assert codes == [1, 1] and own == "error: No space left on device: /tmp/somewhere\n"
    assert said == "error: process 1 of 2 has ended: No space left on device: /tmp/somewhere\n"


def test_a_signal_to_one_stops_all_after_the_same_update(config, tmp_path):
    whole = replace(config, exp_dir=str(tmp_path / "whole"))
    train(whole)

    def signal_second(rank):
        if rank == 1:
            os.kill(os.getpid(), signal.SIGUSR1)

    codes, _ = run(config, 2, at_update(2, signal_second))
    assert codes == [138, 138]
    assert "stopped by SIGUSR1 and saved" in (tmp_path / "one/train.log").read_text()
    assert run(config, 2)[0] == [0, 0] and trace(tmp_path / "one") == trace(tmp_path / "whole")


def test_updates_of_fewer_batches_than_processes_are_refused(config):
    codes, said = run(replace(config, train=replace(config.train, accumulate=1)), 2)
    assert codes == [1, 1] and "train.accumulate is 1: set it to 2 or a multiple" in said[0]


def test_changed_settings_start_anew_with_several_processes(config, tmp_path):
    train(replace(config, train=replace(config.train, seed=5)))
    assert run(replace(config, on_change="restart"), 2)[0] == [0, 0]
    train(replace(config, exp_dir=str(tmp_path / "whole")))
    assert trace(tmp_path / "one") == trace(tmp_path / "whole")


def test_torchrun(config, tmp_path):
    save_config(config, tmp_path / "torchrun.yaml")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, "-m", "moe_asr.bin.train", "--config", tmp_path / "torchrun.yaml"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done after 6 updates") == 1
    train(replace(config, exp_dir=str(tmp_path / "whole")))
    assert trace(tmp_path / "one") == trace(tmp_path / "whole")

"""Training goes on after all that may happen to it, as if it had not happened."""

import contextlib
import json
import multiprocessing
import os
import platform
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch._dynamo  # noqa: F401, which the optimiser would import anew in each process

from moe_asr.config import load_config, run_command, save_config
from moe_asr.data.features import SpecAugmentConfig
from moe_asr.errors import UserError
from moe_asr.methods.adaptation import AdaptationConfig
from moe_asr.methods.saml import SamlConfig
from moe_asr.training import checkpoint as ckpt
from moe_asr.training.optimizer import GroupConfig, OptimConfig
from moe_asr.training.run import RunConfig, train
from moe_asr.training.schedule import ScheduleConfig
from moe_asr.training.update import Updater

GOLDEN = Path(__file__).with_name("golden_losses.json")

# All that has a state: dropout, augmentation, speeds, a schedule, and two optimisers that take turns.
OPTIM = OptimConfig(
    lr=0.01,
    alternate=True,
    groups=(GroupConfig("router"), GroupConfig(".")),
    schedule=ScheduleConfig("cosine", warmup_steps=2, epoch_factor=0.9),
)


def configure(corpus, exp_dir, **changes):
    exp_dir.parent.mkdir(exist_ok=True, parents=True)
    path = exp_dir.parent / f"{exp_dir.name}.yaml"
    path.write_text((corpus / "lora.yaml").read_text() + f"exp_dir: {exp_dir}\n")
    found = load_config(RunConfig, path)
    loop = {"optim": OPTIM, "log_every": 1, "save_every": 2, "max_epochs": 2, **changes.pop("train", {})}
    data = replace(found.data, speed_factors=(0.9, 1.0, 1.1), num_workers=changes.pop("num_workers", 0))
    return replace(
        found,
        adaptation=AdaptationConfig(saml=SamlConfig(num_experts=2, dropout=0.3)),
        data=data,
        augment=SpecAugmentConfig(time_mask_frames=20, mel_mask_bins=4),
        train=replace(found.train, **loop),
        **changes,
    )


def apart(run, *args) -> int:
    """Runs a function in a process of its own; its exit code, negative for a signal."""
    process = multiprocessing.get_context("fork").Process(target=run, args=args)
    process.start()
    process.join(900)
    return process.exitcode


def train_and_note(config, kill_at=None):
    """Trains, notes the utterances of each update on the way, and dies in an update."""
    call, count = Updater.__call__, [0]

    def noting(self, batches, epoch, first, *args):
        count[0] += 1
        update = call(self, batches, epoch, first, *args)
        if count[0] == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        with open(f"{config.exp_dir}.ids", "a") as file:
            print(json.dumps([epoch, first, [batch.ids for batch in batches]]), file=file)
        return update

    Updater.__call__ = noting
    train(config)


def notes(config):
    return [json.loads(line) for line in Path(f"{config.exp_dir}.ids").read_text().splitlines()]


def trace(config):
    records = [json.loads(line) for line in (Path(config.exp_dir) / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if "seconds" not in k} for r in records]


def outcome(config):
    """All that must be the same to the bit: losses, weights, optimiser, position, and the adaptation."""
    folder = Path(config.exp_dir)
    newest = ckpt.find_checkpoints(folder / "checkpoints")[-1]
    state = ckpt.read_state(newest)
    files = [newest / ckpt.MODEL, newest / ckpt.OPTIMIZER, folder / "final/adapter/adapter.safetensors"]
    return trace(config), newest.name, state, [file.read_bytes() for file in files]


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    config = configure(corpus, tmp_path_factory.mktemp("whole") / "run")
    assert apart(train_and_note, config) == 0
    return config


def test_the_losses_are_the_stored_ones(whole):
    """To the bit where the processor and torch are known; to rounding elsewhere.

    MOE_ASR_GOLDEN=write stores those of this machine, after a change that is meant to change them.
    """
    stored = json.loads(GOLDEN.read_text())
    found = [r.get("loss") or r["valid"]["loss"] for r in trace(whole)]
    here = f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {processor()}"
    if os.environ.get("MOE_ASR_GOLDEN") == "write":
        GOLDEN.write_text(json.dumps({**stored, here: found}, indent=1, sort_keys=True) + "\n")
    elif here in stored:
        assert found == stored[here]
    else:
        print(f"no losses are stored for {here}: compared with others up to rounding")
        assert stored and all(found == pytest.approx(losses, rel=1e-3) for losses in stored.values())


def processor():
    """Its model: libraries choose how to compute by it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


@pytest.mark.parametrize(
    ("num_workers", "kill_at", "goes_on_at"),
    [(0, 1, [0, 0]), (0, 6, [0, 4]), (0, 12, [1, 4]), (2, 4, [0, 2]), (2, 7, [1, 0])],
)
def test_killed_and_started_again(corpus, whole, tmp_path, num_workers, kill_at, goes_on_at):
    """In the first update, the middle, the last of an epoch, the first of the next, and the last of all."""
    config = configure(corpus, tmp_path / "run", num_workers=num_workers)
    assert apart(train_and_note, config, kill_at) == -signal.SIGKILL
    before = notes(config) if kill_at > 1 else []
    assert apart(train_and_note, config) == 0
    rest = notes(config)[len(before) :]
    assert rest[0][:2] == goes_on_at  # what workers had fetched ahead does not count
    assert before == notes(whole)[: kill_at - 1] and rest == notes(whole)[-len(rest) :]
    assert outcome(config) == outcome(whole)


def run(config, capfd):
    """Trains as the command does; the exit code, and what it prints to stdout and stderr."""
    save_config(config, f"{config.exp_dir}.yaml")
    capfd.readouterr()
    code = apart(run_command, RunConfig, train, ["--config", f"{config.exp_dir}.yaml"])
    return code, *capfd.readouterr()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MiB, made by mounting."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"mounting is not permitted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_one_line_and_costs_no_more_than_the_last_steps(corpus, whole, small_disk, monkeypatch, capfd):
    call, count, filler = Updater.__call__, [0], small_disk / "filler"

    def filling(self, *args):
        count[0] += 1
        if count[0] == 6:
            with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
                while file.write(b"x" * 1024):
                    pass
        return call(self, *args)

    config = configure(corpus, small_disk / "run")
    with monkeypatch.context() as patch:
        patch.setattr(Updater, "__call__", filling)
        code, _, err = run(config, capfd)
    assert code == 1 and err.count("\n") == 1 and "No space left on device" in err, err
    kept = [path.name for path in ckpt.find_checkpoints(small_disk / "run/checkpoints")]
    assert kept == ["step-00000002", "step-00000004"]
    filler.unlink()
    code, out, err = run(config, capfd)
    assert code == 0 and "going on from step-00000004" in out and outcome(config) == outcome(whole), err


def lost_audio(corpus, folder, names):
    """The corpus with some recordings that vanish when training has begun."""
    manifest = (corpus / "all.jsonl").read_text()
    for path in corpus.glob("*.wav"):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "all.jsonl").write_text(manifest.replace(str(corpus), str(folder)))
    call = Updater.__call__

    def losing(self, *args):
        for name in names:
            (folder / f"{name}.wav").unlink(missing_ok=True)
        return call(self, *args)

    return losing


@pytest.mark.parametrize("num_workers", [0, 2])
def test_audio_that_disappears_is_left_out_and_named(corpus, tmp_path, monkeypatch, capsys, num_workers):
    monkeypatch.setattr(Updater, "__call__", lost_audio(corpus, tmp_path, ["3", "8"]))
    config = configure(corpus, tmp_path / "run", num_workers=num_workers)
    data = replace(config.data, manifests=[str(tmp_path / "all.jsonl")])
    progress = train(replace(config, data=data))
    lost = [json.loads(line) for line in (tmp_path / "run/skipped.jsonl").read_text().splitlines()]
    assert {name for entry in lost for name in entry["ids"]} == {"u3", "u8"}
    assert all("cannot read utterance u" in entry["reason"] for entry in lost)
    assert progress.troubles == len(lost) >= 2 and progress.epoch == 2 and progress.step >= 10
    assert "trouble 1: cannot read utterance u" in capsys.readouterr().out


def test_audio_that_disappears_altogether_ends_the_run_with_its_reason(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(Updater, "__call__", lost_audio(corpus, tmp_path, range(12)))
    config = configure(corpus, tmp_path / "run", train={"patience": 3, "save_every": 1})
    data = replace(config.data, manifests=[str(tmp_path / "all.jsonl")])
    with pytest.raises(UserError, match="3 updates in a row had no utterance that could be used; see skipped.jsonl"):
        train(replace(config, data=data))
    assert len(ckpt.find_checkpoints(tmp_path / "run/checkpoints")) >= 1


def test_a_worker_that_is_killed_changes_nothing(corpus, whole, tmp_path):
    def killing(config):
        call, count = Updater.__call__, [0]

        def once(self, *args):
            count[0] += 1
            if count[0] == 1:
                workers = multiprocessing.active_children()
                assert len(workers) == 2
                os.kill(workers[0].pid, signal.SIGKILL)
            return call(self, *args)

        Updater.__call__ = once
        train(config)

    config = configure(corpus, tmp_path / "run", num_workers=2)
    assert apart(killing, config) == 0
    lines = [json.loads(line) for line in (tmp_path / "run/skipped.jsonl").read_text().splitlines()]
    assert [line["reason"] for line in lines] == ["a process that loads data died (killed by SIGKILL); it was replaced"]
    ours, theirs = outcome(config), outcome(whole)
    assert ours[2]["progress"].pop("troubles") == 1 and theirs[2]["progress"].pop("troubles") == 0
    assert ours == theirs


def smaller_memory(monkeypatch, most):
    """A forward that runs out of memory where a batch has more than so many utterances."""
    forward = Updater.forward

    def limited(self, batch, generator):
        if generator is not None and len(batch.ids) > most:
            forward(self, batch, generator).total.backward()  # gradients are there already when it happens
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(self, batch, generator)

    monkeypatch.setattr(Updater, "forward", limited)


def test_a_batch_that_does_not_fit_is_split_and_named(corpus, tmp_path, monkeypatch):
    smaller_memory(monkeypatch, 1)
    progress = train(configure(corpus, tmp_path / "run", train={"max_epochs": 1, "accumulate": 2}))
    entries = [json.loads(line) for line in (tmp_path / "run/skipped.jsonl").read_text().splitlines()]
    assert progress.troubles == len(entries) == 6 and progress.skipped == 0 and progress.step == 3
    assert all(len(e["ids"]) == 2 and e["reason"] == "out of memory: computed in two parts" for e in entries)


def test_an_utterance_that_does_not_fit_alone_is_left_out(corpus, tmp_path, monkeypatch):
    smaller_memory(monkeypatch, 0)
    with pytest.raises(UserError, match="2 updates in a row had no utterance that could be used"):
        train(configure(corpus, tmp_path / "run", train={"patience": 2}))
    reasons = [json.loads(line).get("reason") for line in (tmp_path / "run/skipped.jsonl").read_text().splitlines()]
    assert reasons.count("out of memory: left out") == 4 and reasons.count("out of memory: computed in two parts") == 2


def test_other_errors_are_not_taken_for_memory(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(Updater, "forward", lambda *_: (_ for _ in ()).throw(RuntimeError("shapes do not fit")))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        train(configure(corpus, tmp_path / "run"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGINT, 130)])
def test_signals_reach_the_command(corpus, whole, tmp_path, number, code):
    """From outside, with workers in the same process group, as a scheduler or a terminal sends them."""
    config = configure(corpus, tmp_path / "run", num_workers=2)
    save_config(config, tmp_path / "run.yaml")

    def command():
        os.setsid()
        run_command(RunConfig, train, ["--config", str(tmp_path / "run.yaml")])

    process = multiprocessing.get_context("fork").Process(target=command)
    process.start()
    log = tmp_path / "run/train.log"
    while "step 1:" not in (log.read_text() if log.exists() else ""):
        assert process.is_alive()
        time.sleep(0.01)
    os.killpg(process.pid, number)
    process.join(900)
    assert process.exitcode == code and f"stopped by {number.name} and saved" in log.read_text()
    assert apart(train_and_note, config) == 0 and outcome(config) == outcome(whole)

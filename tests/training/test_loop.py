import json
import os
import signal
from dataclasses import replace
from functools import partial

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy import Toy, ToyLoss, batches, config, metrics, trainer

from moe_asr.config import from_plain, to_plain
from moe_asr.errors import UserError
from moe_asr.training import checkpoint as ckpt
from moe_asr.training.config import TrainConfig
from moe_asr.training.optimizer import GroupConfig, OptimConfig
from moe_asr.training.schedule import ScheduleConfig

ALTERNATING = OptimConfig(
    alternate=True,
    groups=(GroupConfig("hidden", lr_factor=0.3), GroupConfig(".")),
    schedule=ScheduleConfig(epoch_factor=0.9),
    weight_decay=0.0,
)


class Killed(BaseException):
    """What `kill -9` looks like from inside: nothing that was not on the disk survives."""


def toy() -> Toy:
    return Toy(dropout=0.5, noise=0.3)


def stop_at(model: Toy, call: int, how):
    """A forward that stops the process's work in its `call`-th training batch."""
    calls = 0

    def forward(batch, generator):
        nonlocal calls
        calls += generator is not None
        if calls == call and generator is not None:
            if how is Killed:
                raise Killed
            os.kill(os.getpid(), how)
        return model(batch, generator)

    return forward


def kept(run_dir):
    return [int(folder.name.split("-")[1]) for folder in ckpt.find_checkpoints(run_dir / "checkpoints")]


def assert_same_run(first, second):
    """Two run folders hold the same loss trace, and the same newest checkpoint bit for bit."""
    assert metrics(first) == metrics(second)
    a, b = (ckpt.find_checkpoints(run / "checkpoints")[-1] for run in (first, second))
    assert ckpt.read_state(a) == ckpt.read_state(b)
    for name in (ckpt.MODEL, ckpt.OPTIMIZER):
        assert (a / name).read_bytes() == (b / name).read_bytes()


def test_it_learns(tmp_path):
    model = Toy()
    with torch.no_grad():
        untrained = sum(model(batch, None).total for batch in batches(99)) / 15
    trainer(model, tmp_path, config(max_epochs=60, lr=0.03, validate_every=20)).train()
    records = [r["valid"]["loss"] for r in metrics(tmp_path) if "valid" in r]
    assert len(records) == 3 and records[-1] < 0.1 * untrained
    assert not model.training


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"accumulate": 2, "log_every": 2, "validate_unit": "step", "validate_every": 2, "average_count": 2},
        {"optim": OptimConfig(schedule=ScheduleConfig("cosine", warmup_steps=2)), "average": "best"},
        {"optim": ALTERNATING, "average": "best", "best": "accuracy"},
    ],
)
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, Killed])
@pytest.mark.parametrize("call", [1, 5, 7, 10, 13])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(tmp_path, changes, how, call):
    """N updates == k updates, stop, new process, N - k updates; in the middle and at the ends of epochs."""
    settings = config(max_epochs=3, save_every=2, **changes)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    undisturbed = toy()
    trainer(undisturbed, whole, settings).train()

    model = toy()
    stopped = trainer(model, parts, settings, forward=stop_at(model, call, how))
    with pytest.raises({signal.SIGTERM: SystemExit, signal.SIGINT: KeyboardInterrupt, Killed: Killed}[how]):
        stopped.train()
    consumed = model.ids_seen
    torch.manual_seed(12345)  # another process's generator
    model = toy()
    again = trainer(model, parts, settings)
    if how is not Killed:
        assert consumed + model.ids_seen == undisturbed.ids_seen[: len(consumed)]
        assert again.progress.step >= 1
    again.train()
    assert_same_run(whole, parts)
    if how is not Killed:
        assert consumed + model.ids_seen == undisturbed.ids_seen
    for a, b in zip(model.state_dict().values(), undisturbed.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_alternation_is_two_adam_optimisers_stepped_in_turn(tmp_path):
    """Turns go by the update's number, also where an epoch has an odd number of batches; the rates by the epoch."""
    model, reference = Toy(dtype=torch.float64), Toy(dtype=torch.float64)
    doubles = partial(batches, dtype=torch.float64)
    valid = partial(doubles, 99)
    optim = replace(ALTERNATING, clip_grad_norm=None)
    trainer(model, tmp_path, config(max_epochs=3, optim=optim), train_batches=doubles, valid_batches=valid).train()

    rest = [*reference.norm.parameters(), *reference.out.parameters()]
    both = [torch.optim.Adam(parameters, betas=optim.betas) for parameters in (reference.hidden.parameters(), rest)]
    number = 0
    for epoch in range(3):
        for batch in doubles(epoch):
            active, peak = both[number % 2], optim.lr * (0.3, 1.0)[number % 2]
            active.param_groups[0]["lr"] = peak * 0.9**epoch
            reference.zero_grad()
            (reference(batch, None).total / len(batch.ids)).backward()
            active.step()
            number += 1
    assert number == 15
    for a, b in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_a_skipped_update_is_not_a_turn(tmp_path):
    model = toy()
    run = trainer(model, tmp_path, config(max_epochs=1, optim=ALTERNATING), forward=bad_batches(model, ["e0-b1-u0"]))
    run.train()
    steps = {name: int(run.state.optimizer.state[p]["step"]) for name, p in model.named_parameters()}
    assert steps == {name: 2 for name in steps}  # of five batches one is bad, the other four are two for each


def test_a_signal_in_validation_does_not_wait_for_its_end(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    trainer(toy(), whole, config()).train()
    seen = []

    def valid():
        for batch in batches(99):
            seen.append(batch)
            os.kill(os.getpid(), signal.SIGUSR1)
            yield batch

    with pytest.raises(SystemExit) as stop:
        trainer(toy(), parts, config(), valid_batches=valid).train()
    assert stop.value.code == 138 and len(seen) == 1
    assert [r for r in metrics(parts) if "valid" in r] == []
    assert not ckpt.read_state(ckpt.find_checkpoints(parts / "checkpoints")[-1])["milestone"]
    trainer(toy(), parts, config()).train()
    assert_same_run(whole, parts)


def test_no_validation_is_started_after_a_signal(tmp_path):
    model, seen = toy(), []

    def valid():
        seen.append("validation")
        return batches(99)

    with pytest.raises(SystemExit):
        settings = config(validate_unit="step", validate_every=2)
        trainer(model, tmp_path, settings, valid_batches=valid, forward=stop_at(model, 2, signal.SIGTERM)).train()
    assert seen == [] and kept(tmp_path) == [2]


def test_a_finished_run_started_again_does_nothing_but_average(tmp_path, capsys):
    settings = config(average="best", average_count=2)
    first, second = toy(), toy()
    trainer(first, tmp_path, settings).train()
    before = metrics(tmp_path), kept(tmp_path)
    trainer(second, tmp_path, settings).train()
    assert (metrics(tmp_path), kept(tmp_path)) == before and second.ids_seen == []
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert "going on from step-00000015: epoch 4, 0 of its batches done" in capsys.readouterr().out


def test_a_longer_run_does_not_change_the_past(tmp_path):
    """Two epochs and then three are three epochs, also with a decay that follows from the length of the first run."""
    optim = OptimConfig(schedule=ScheduleConfig("linear"))
    for name, lengths in (("once", [3]), ("twice", [2, 3])):
        for epochs in lengths:
            decay = OptimConfig(schedule=ScheduleConfig("linear", decay_steps=10)) if name == "once" else optim
            trainer(toy(), tmp_path / name, config(max_epochs=epochs, optim=decay)).train()
    assert metrics(tmp_path / "once") == metrics(tmp_path / "twice")


def test_changed_settings_are_refused(tmp_path):
    trainer(toy(), tmp_path, config(max_epochs=1), identity={"data": {"seed": 1}}).train()
    with pytest.raises(UserError, match="train.optim.lr = 0.01 and cannot go on with 0.5"):
        trainer(toy(), tmp_path, config(lr=0.5), identity={"data": {"seed": 1}})
    with pytest.raises(UserError, match="data.seed = 1 and cannot go on with 2"):
        trainer(toy(), tmp_path, config(), identity={"data": {"seed": 2}})
    free = {"max_steps": 99, "log_every": 7, "patience": 3, "keep_checkpoints": 4, "average_count": 2, "save_every": 5}
    trainer(toy(), tmp_path, config(**free), identity={"data": {"seed": 1}})


def test_a_damaged_newest_checkpoint_costs_only_its_steps(tmp_path, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for run in (whole, parts):
        trainer(toy(), run, config()).train()
    newest = ckpt.find_checkpoints(parts / "checkpoints")[-1]
    content = bytearray((newest / ckpt.MODEL).read_bytes())
    content[-1] ^= 1
    (newest / ckpt.MODEL).write_bytes(content)
    capsys.readouterr()
    trainer(toy(), parts, config()).train()
    said = capsys.readouterr().out
    assert "passed over: checkpoint" in said and "going on from step-00000010" in said
    assert_same_run(whole, parts)


def test_what_is_kept(tmp_path):
    """The newest, the best, and those the average needs; the rest goes."""
    losses = iter([5.0, 1.0, 2.0, 4.0, 3.0, 6.0])

    def run(run_dir, **changes):
        model = toy()

        def forward(batch, generator):
            loss = model(batch, generator)
            return loss if generator else ToyLoss(torch.tensor(next(losses)), 1, {})

        settings = config(max_epochs=6, **changes)
        return trainer(model, run_dir, settings, forward=forward, valid_batches=lambda: batches(9)[:1]).train()

    run(tmp_path / "a", average="best", average_count=3)
    assert kept(tmp_path / "a") == [10, 15, 25, 30]
    assert (
        "final weights: mean of step-00000010, step-00000015, step-00000025" in (tmp_path / "a/train.log").read_text()
    )
    losses = iter([5.0, 1.0, 2.0, 4.0, 3.0, 6.0])
    run(tmp_path / "b", average_count=3, keep_checkpoints=2)
    assert kept(tmp_path / "b") == [10, 20, 25, 30]


def with_figures(model, figures, name="accuracy"):
    """A forward whose validations give these pairs of mean loss and mean part `name` one after the other."""
    figures = iter(figures)

    def forward(batch, generator):
        loss = model(batch, generator)
        if generator is not None:
            return ToyLoss(loss.total, loss.count, {name: torch.tensor(0.0)})
        total, part = next(figures)
        return ToyLoss(torch.tensor(4 * total), 4, {name: torch.tensor(4 * part)})

    return forward


FIGURES = [(5.0, 0.25), (1.0, 0.0), (2.0, 0.75), (4.0, 0.5), (3.0, 0.75), (6.0, 0.5)]


@pytest.mark.parametrize(("best", "steps"), [("loss", [10, 15]), ("accuracy", [15, 25])])
def test_best_by_loss_or_accuracy(tmp_path, capsys, best, steps):
    model = toy()
    settings = config(max_epochs=6, best=best, average="best", average_count=2)
    run = trainer(model, tmp_path, settings, forward=with_figures(model, FIGURES), valid_batches=lambda: batches(9)[:1])
    run.train()
    said = capsys.readouterr().out
    assert f"final weights: mean of step-{steps[0]:08d}, step-{steps[1]:08d}" in said
    assert run.progress.best == {"loss": 1.0, "accuracy": 0.75}[best]
    if best == "loss":
        assert "step 10: validation loss 1 (best), saved" in said and said.count("(best)") == 2
    else:
        assert "step 15: validation loss 2, accuracy 0.75 (best), saved" in said and said.count("(best)") == 2
        assert "step 10: validation loss 1, accuracy 0, saved" in said


def test_early_stopping_by_accuracy(tmp_path):
    """0.75 at the third is the best; the same once more is not better."""
    model = toy()
    settings = config(max_epochs=6, best="accuracy", early_stopping=2)
    run = trainer(model, tmp_path, settings, forward=with_figures(model, FIGURES), valid_batches=lambda: batches(9)[:1])
    run.train()
    assert run.progress.epoch == 5


def test_accuracy_that_is_not_reported_is_refused_at_once(tmp_path):
    model = toy()
    forward = with_figures(model, FIGURES, "balance")
    with pytest.raises(UserError, match="best: accuracy, but this model reports only loss, balance; use best: loss"):
        trainer(model, tmp_path, config(best="accuracy"), forward=forward).train()
    assert len(model.ids_seen) == 1


def test_final_weights_are_the_mean(tmp_path):
    model = toy()
    trainer(model, tmp_path, config(average_count=2)).train()
    folders = ckpt.find_checkpoints(tmp_path / "checkpoints")[-2:]
    a, b = (ckpt.read_tensors(folder, ckpt.MODEL)["out.weight"].double() for folder in folders)
    assert not torch.equal(a, b)
    assert torch.equal(model.out.weight, ((a + b) / 2).float())


def test_accumulation_makes_a_short_last_update(tmp_path):
    """5 batches by 2 are 3 updates an epoch, the last from one batch; none mixes two epochs."""
    trainer(toy(), tmp_path, config(max_epochs=2, accumulate=2)).train()
    assert [r["batch"] for r in metrics(tmp_path) if "loss" in r] == [2, 4, 5, 2, 4, 5]


def bad_batches(model, bad):
    def forward(batch, generator):
        loss = model(batch, generator)
        return ToyLoss(loss.total * float("inf"), loss.count, loss.parts) if set(bad) & set(batch.ids) else loss

    return forward


def test_skipped_steps_are_counted_and_named(tmp_path, capsys):
    model = toy()
    run = trainer(model, tmp_path, config(patience=2), forward=bad_batches(model, ["e0-b1-u0", "e1-b2-u3", "e1-b0-u0"]))
    run.train()
    assert run.progress.step == 12 and run.progress.skipped == 3
    skipped = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert [(s["epoch"], s["batch"], s["not_finite"]) for s in skipped] == [
        (0, 2, "loss"),
        (1, 1, "loss"),
        (1, 3, "loss"),
    ]
    assert skipped[2]["ids"] == ["e1-b2-u0", "e1-b2-u1", "e1-b2-u2", "e1-b2-u3"]
    assert [r["step"] for r in metrics(tmp_path) if "loss" in r] == list(range(1, 13))
    assert "step 2 skipped: loss not finite (1 utterances, see skipped.jsonl)" in capsys.readouterr().out


def test_patience_ends(tmp_path):
    model = toy()
    bad = ["e0-b1-u0", "e1-b0-u0", "e1-b1-u0", "e1-b2-u0"]
    with pytest.raises(UserError, match="3 updates in a row .* last with e1-b2-u0"):
        trainer(model, tmp_path, config(patience=3), forward=bad_batches(model, bad)).train()
    assert kept(tmp_path) == [4]


def test_a_milestone_stays_one_when_only_skipped_steps_follow(tmp_path):
    model = toy()
    forward = bad_batches(model, ["e1-b0-u0"])

    def stopping(batch, generator):
        if "e1-b0-u0" in batch.ids:
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(batch, generator)

    with pytest.raises(SystemExit):
        trainer(model, tmp_path, config(), forward=stopping).train()
    state = ckpt.read_state(tmp_path / "checkpoints" / "step-00000005")
    assert state["milestone"] and state["valid"] is not None
    assert (state["progress"]["epoch"], state["progress"]["batch"]) == (1, 1)


def test_early_stopping(tmp_path):
    run = trainer(toy(), tmp_path, config(max_epochs=50, lr=0.0, early_stopping=3))
    run.train()
    assert run.progress.epoch == 4  # the first is the best, then three that are no better


def test_max_steps_ends_with_a_milestone(tmp_path):
    trainer(toy(), tmp_path, config(max_steps=7)).train()
    assert kept(tmp_path)[-1] == 7
    assert [r["step"] for r in metrics(tmp_path) if "valid" in r] == [5, 7]


def test_tensorboard_and_monitors(tmp_path):
    calls = []

    def monitor(writer, step, epoch):
        calls.append((step, epoch))
        writer.add_image("routing", torch.rand(3, 4, 5), step)

    trainer(toy(), tmp_path, config(max_epochs=2, tensorboard=True), monitors=[monitor]).train()
    writers = []
    told = [lambda writer, step, epoch: writers.append(writer)]
    trainer(toy(), tmp_path / "without", config(max_epochs=2, tensorboard=False), monitors=told).train()
    assert writers == [None, None]
    assert calls == [(5, 1), (10, 2)]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {"loss", "grad_norm", "lr/default", "parts/absolute", "valid/loss", "valid/parts/absolute"} <= set(
        events.Tags()["scalars"]
    )
    assert [e.step for e in events.Images("routing")] == [5, 10]
    assert [e.value for e in events.Scalars("loss")] == pytest.approx(
        [r["loss"] for r in metrics(tmp_path) if "loss" in r]
    )


def test_parameters_without_gradient_are_named(tmp_path, capsys):
    model = toy()

    def forward(batch, generator):
        loss = model(batch, generator)
        return ToyLoss((model.out.weight**2).sum() + (model.norm.bias**2).sum(), loss.count, {}) if generator else loss

    trainer(model, tmp_path, config(max_epochs=1), forward=forward).train()
    said = [line for line in capsys.readouterr().out.splitlines() if "no gradient" in line]
    assert said == ["warning: the first update had no gradient for hidden.weight, hidden.bias, norm.weight, out.bias"]


def test_metrics_say_how_fast(tmp_path):
    trainer(toy(), tmp_path, config(max_epochs=1), seconds_of=lambda batch: batch.seconds).train()
    record = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert record["audio_seconds_per_second"] == pytest.approx(3 / record["seconds"])


def test_start_is_refused(tmp_path):
    with pytest.raises(UserError, match="trainable but not declared: hidden.bias"):
        trainer(toy(), tmp_path, config(), trainable=["out.weight"])
    with pytest.raises(UserError, match="need a validation set"):
        trainer(toy(), tmp_path, config(average="best"), valid_batches=None)
    with pytest.raises(UserError, match="gives no batches"):
        trainer(toy(), tmp_path, config(), train_batches=lambda epoch, start: []).train()
    endless = config(optim=OptimConfig(schedule=ScheduleConfig("cosine")))
    with pytest.raises(UserError, match="decay_steps"):
        trainer(toy(), tmp_path, endless, train_batches=lambda epoch, start: iter(batches(epoch))).train()


@pytest.mark.parametrize("bad", [{"keep_checkpoints": 1}, {"accumulate": 0}, {"patience": 0}, {"save_every": 0}])
def test_bad_settings(bad):
    with pytest.raises(UserError, match=f"{next(iter(bad))} is"):
        TrainConfig(**bad)


def test_settings_are_plain_and_back():
    settings = config(max_steps=3, optim=OptimConfig(betas=(0.8, 0.9), clip_grad_norm=None))
    assert from_plain(TrainConfig, to_plain(settings)).max_steps == 3

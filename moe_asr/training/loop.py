"""The training loop. It knows batches, losses and weights, and nothing of speech, models or experts."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from torch import nn

from moe_asr.errors import UserError
from moe_asr.signals import StopSignals
from moe_asr.training.config import TrainConfig
from moe_asr.training.distributed import OthersEnded, gather, rank, world_size
from moe_asr.training.mishaps import loading_troubles, trouble_line, why_not_made
from moe_asr.training.optimizer import build_optimizer, check_trainable, describe_parameters, shorten, turns
from moe_asr.training.reports import Reports
from moe_asr.training.run_state import RunState
from moe_asr.training.schedule import learning_rate_factor
from moe_asr.training.update import Forward, LossSums, Update, Updater


class Trainer:
    """Trains `model` in `run_dir`, going on from the newest intact checkpoint there if there is one.

    A run that is stopped and goes on is, bit for bit, the run that was never stopped (on a CPU; on a GPU up to the
    order in which its kernels add).

    Args:
        model: already on its device; its trainable parameters must be exactly `trainable`
        forward: `forward(batch, generator) -> loss` with `total`, `count` and `parts`, sums over the batch. `generator`
            is a CPU generator to draw augmentation from; it is None in validation, where nothing is random
        train_batches: `train_batches(epoch, start)` gives the batches of an epoch from number `start` on; each has
            `ids` and `to(device)`, and may have `part` and `troubles` (see `data.batches`). With several processes
            those of others are None, see `data.plan.Share`: of each update's batches and of all validation batches
            the first is process 0's, the next process 1's, and so on around
        run_dir: gets checkpoints/, metrics.jsonl, skipped.jsonl, train.log and tensorboard/
        trainable: names of the parameters declared to train
        valid_batches: gives the validation set
        identity: whatever else makes the run what it is (data, model), as a plain dict; it may not change on resume
        seconds_of: seconds of audio in a batch, for the speed in the reports
        monitors: `monitor(writer, step, epoch)`, called after each validation with TensorBoard's writer, None where
            that is switched off
        further: further figures of a validation, from its sums

    Raises:
        UserError: the trainable set is not the declared one, the run was started with other settings, or it has
            checkpoints of which none is intact.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: Forward,
        train_batches: Callable[[int, int], Iterable],
        config: TrainConfig,
        run_dir: str | Path,
        *,
        trainable: Iterable[str],
        valid_batches: Callable[[], Iterable] | None = None,
        identity: dict | None = None,
        seconds_of: Callable[[Any], float] | None = None,
        monitors: Sequence[Callable[[Any, int, int], None]] = (),
        further: Callable[[LossSums], dict[str, float]] = lambda sums: {},
    ) -> None:
        check_trainable(model, trainable)
        if config.accumulate < world_size():
            raise UserError(
                f"{world_size()} processes share the batches of an update, but train.accumulate is {config.accumulate}:"
                f" set it to {world_size()} or a multiple (and max_duration to what one process is to have at once)"
            )
        if valid_batches is None and (config.average == "best" or config.early_stopping):
            raise UserError("average: best and early_stopping need a validation set; give one, or use average: last")
        self.model, self.config, self.monitors, self._further = model, config, monitors, further
        self._train_batches, self._valid_batches, self._seconds_of = train_batches, valid_batches, seconds_of
        device = next(model.parameters()).device
        optimizer = build_optimizer(model, config.optim)
        self.updater = Updater(forward, optimizer, device, config.optim.clip_grad_norm, config.precision, config.seed)
        self.state = RunState(Path(run_dir) / "checkpoints", model, optimizer, config, identity or {})
        self.progress = self.state.progress
        lines = [*describe_parameters(model, optimizer), *self.state.resume()]
        self.reports = Reports(
            Path(run_dir), config.tensorboard, self.progress.position, self.progress.step, rank() != 0
        )
        for line in lines:
            self.reports.say(line)
        self._signals = StopSignals()
        self._stop: signal.Signals | None = None  # what all processes agree to have received
        self._epoch_length: int | None = None
        self._clock, self._heard = time.perf_counter(), 0.0

    def train(self) -> None:
        """Trains to the end. The model then holds the mean of the checkpoints that the configuration asks for.

        Raises:
            UserError: too many updates in a row were not finite, there is no data, or a checkpoint cannot be written.
            KeyboardInterrupt, SystemExit: a signal came, see `signals`; the step was finished and saved.
        """
        try:
            with self._signals:
                self._run()
                if self._stop:
                    self.state.save()
                    self.reports.say(f"stopped by {self._stop.name} and saved; the same command goes on from here")
                    self._signals.leave(self._stop)
            folders = self.state.average()
            final = ("mean of " if len(folders) > 1 else "") + ", ".join(folder.name for folder in folders)
            self.reports.say(f"done after {self.progress.step} updates; final weights: {final}")
            self.model.eval()
        except OthersEnded as error:
            self.reports.say(f"stopped: {error}")
            raise
        finally:
            self.reports.close()

    @property
    def finished(self) -> bool:
        config, progress = self.config, self.progress
        return (
            progress.epoch >= config.max_epochs
            or (config.max_steps is not None and progress.step >= config.max_steps)
            or (config.early_stopping is not None and progress.milestones_since_best >= config.early_stopping)
        )

    def _run(self) -> None:
        """Updates, milestones and checkpoints until the run is finished or a signal has come."""
        progress, every = self.progress, self.config.save_every
        self.model.train()
        self._milestone_if_due()  # a run may have been stopped just before one
        with closing(self._updates()) as updates:
            while not self._stopping and (batches := next(updates, None)) is not None:
                if batches:
                    self._update(batches)
                self._milestone_if_due()
                if every and batches and progress.step % every == 0:
                    self.state.save()

    @property
    def _stopping(self) -> bool:
        if world_size() == 1:  # nobody to agree with
            self._stop = self._signals.received
        return self._stop is not None

    def _agree_to_stop(self, received: Sequence[int | None]) -> None:
        """Takes note of the first signal that any process received, so that all stop in the same place."""
        number = next((number for number in received if number is not None), None)
        self._stop = signal.Signals(number) if number is not None else None

    def _updates(self) -> Iterator[list]:
        """The batches of one update after the other, from the saved position on; an empty list ends an epoch."""
        progress = self.progress
        while not self.finished:
            epoch = self._train_batches(progress.epoch, progress.batch)
            self._epoch_length = progress.batch + len(epoch) if hasattr(epoch, "__len__") else None
            batches = iter(epoch)
            while not self.finished and (group := list(islice(batches, self.config.accumulate))):
                yield group
            if self.finished:
                return
            if progress.batch == 0:
                raise UserError("the training data gives no batches; see whether its manifest is empty")
            progress.epoch, progress.batch = progress.epoch + 1, 0
            yield []

    def _update(self, batches: list) -> None:
        progress, optim = self.progress, self.config.optim
        factor = learning_rate_factor(progress.step + 1, optim.schedule, self._decay_steps(), progress.epoch)
        turn = progress.step % turns(self.updater.optimizer) if optim.alternate else None
        update = self.updater(batches, progress.epoch, progress.batch, optim.lr * factor, turn)
        progress.batch += len(batches)
        own = [batch for batch in batches if batch is not None]
        heard = sum(map(self._seconds_of, own)) if self._seconds_of else 0.0
        told = gather([self._signals.received, heard, [*loading_troubles(own), *update.troubles]])
        received, seconds, troubles = zip(*told)
        self._agree_to_stop(received)
        self._heard += sum(seconds)
        for trouble in (trouble for several in troubles for trouble in several):
            self._tell(trouble)
        if update.made:
            progress.step += 1
            progress.skipped_in_a_row = 0
            progress.window.add(update.sums)
            self._check_best(update.sums)
            if world_size() > 1 and (changed := self.state.weights.changed_buffers()):
                raise UserError(f"the model counts in {shorten(list(changed))}, which processes do not share: use one")
            if progress.step == 1 and update.unreached:
                self.reports.say(f"warning: the first update had no gradient for {shorten(update.unreached)}")
            self._log(update)
        else:
            self._skip(batches, update)

    def _tell(self, trouble: dict) -> None:
        """Counts and names what went wrong with a batch, or a part of it, that the run survives."""
        self.progress.troubles += 1
        self.reports.skipped({**self._place(), **trouble})
        self.reports.say(trouble_line(self.progress.troubles, trouble))

    def _skip(self, batches: list, update: Update) -> None:
        """Counts and names an update that was not made; ends the run when patience is at its end."""
        progress = self.progress
        progress.skipped += 1
        progress.skipped_in_a_row += 1
        own = [[number, batches[number].ids] for number in update.bad_batches if batches[number] is not None]
        ids = [name for _, names in sorted(pair for found in gather(own) for pair in found) for name in names]
        entry, reason, advice = why_not_made(update, ids)
        self.reports.skipped({**self._place(), **entry})
        self.reports.say(f"step {progress.step + 1} skipped: {reason}")
        if progress.skipped_in_a_row >= self.config.patience:
            raise UserError(f"{progress.skipped_in_a_row} updates in a row {advice}")

    def _log(self, update: Update) -> None:
        """A line of metrics every `log_every` updates; the progress bar after each."""
        progress = self.progress
        if progress.step % self.config.log_every == 0:
            seconds = time.perf_counter() - self._clock
            window = progress.window
            rates = {group["name"]: group["lr"] for group in self.updater.optimizer.param_groups}
            record = {**self._place(), "loss": window.loss, "parts": window.means, "lr": rates}
            record |= {"grad_norm": update.grad_norm, "skipped": progress.skipped, "seconds": seconds}
            line = f"epoch {progress.epoch + 1} step {progress.step}: loss {window.loss:.4g}, "
            line += f"lr {max(rates.values()):.3g}, gradient norm {update.grad_norm:.3g}"
            if self._seconds_of:
                record["audio_seconds_per_second"] = self._heard / seconds
                line += f", {self._heard / seconds:.0f} s of audio per s"
            self.reports.record(record)
            self.reports.say(line, log_only=self.reports.on_terminal)
            progress.window, self._clock, self._heard = LossSums(), time.perf_counter(), 0.0
        text = f"epoch {progress.epoch + 1}  step {progress.step}  loss {update.sums.loss:.4g}"
        self.reports.progress(progress.batch, self._epoch_length, text)

    def _milestone_if_due(self) -> None:
        """Validates and saves, at the places the configuration names and at the end of the run."""
        progress, config = self.progress, self.config
        if config.validate_unit == "step":
            due = progress.step % config.validate_every == 0 and progress.step > 0
        else:
            due = progress.batch == 0 and progress.epoch % config.validate_every == 0 and progress.epoch > 0
        if not (due or self.finished) or progress.step == progress.milestone or self._stopping:
            return
        started = time.perf_counter()
        sums = self._validate()
        if sums is None:
            return  # interrupted; it is due again when the run goes on
        progress.milestone = progress.step
        line = f"after epoch {progress.epoch}" if progress.batch == 0 else f"in epoch {progress.epoch + 1}"
        line += f", step {progress.step}: "
        if self._valid_batches:
            best = self._compare(sums)
            shown = {name: value for name, value in sums.means.items() if value or name == config.best}
            further = self._further(sums)
            figures = {"loss": sums.loss, **further, **shown}
            marks = {config.best: " (best)"} if best else {}
            line += "validation " + "".join(f"{k} {v:.4g}{marks.get(k, '')}, " for k, v in figures.items())
            loss = sums.loss if math.isfinite(sums.loss) else None
            self.reports.record({**self._place(), "valid": {"loss": loss, **further, "parts": sums.means}})
        for monitor in self.monitors if not self.reports.silent else ():
            monitor(self.reports.writer, progress.step, progress.epoch)
        self.state.save()
        self.reports.say(line + "saved")
        self._clock += time.perf_counter() - started  # the speed of training is that of training alone

    def _validate(self) -> LossSums | None:
        """Sums over the validation set; None if a signal came."""
        sums = LossSums()
        self.model.eval()
        batches = iter(self._valid_batches() if self._valid_batches else ())
        while group := list(islice(batches, world_size())):
            own = [batch for batch in group if batch is not None]
            figures = [asdict(self.updater.evaluate(batch)) for batch in own or [None]]
            for received, found, troubles in (told := gather([self._signals.received, figures, loading_troubles(own)])):
                for figure in found:
                    sums.add(LossSums(**figure))
                for trouble in troubles:
                    self._tell(trouble)
            self._agree_to_stop([received for received, _, _ in told])
            if self._stop:
                return None
        self.model.train()
        return sums

    def _compare(self, sums: LossSums) -> bool:
        """Keeps the figure of a validation that the best goes by. Returns whether it is a new best."""
        self._check_best(sums)
        progress, config = self.progress, self.config
        figure = sums.loss if config.best == "loss" else sums.means[config.best]
        progress.valid = figure if math.isfinite(figure) and math.isfinite(sums.loss) else None
        sign = 1 if config.best == "loss" else -1
        best = progress.valid is not None and (progress.best is None or sign * progress.valid < sign * progress.best)
        progress.best = progress.valid if best else progress.best
        progress.milestones_since_best = 0 if best else progress.milestones_since_best + 1
        return best

    def _check_best(self, sums: LossSums) -> None:
        if self.config.best != "loss" and self.config.best not in sums.parts:
            reported = ", ".join(["loss", *sums.parts])
            raise UserError(f"best: {self.config.best}, but this model reports only {reported}; use best: loss")

    def _place(self) -> dict[str, int]:
        return {"step": self.progress.step, "epoch": self.progress.epoch, "batch": self.progress.batch}

    def _decay_steps(self) -> int:
        """Length of the decay: that of the run as first planned, so that a longer run does not change the past."""
        progress, config = self.progress, self.config
        if progress.decay_steps is None and config.optim.schedule.needs_length:
            if self._epoch_length is None and config.max_steps is None:
                raise UserError("the length of an epoch is not known: set optim.schedule.decay_steps")
            limits = [config.max_steps] if config.max_steps is not None else []
            if self._epoch_length is not None:
                limits.append(-(-self._epoch_length // config.accumulate) * config.max_epochs)
            progress.decay_steps = min(limits)
        return progress.decay_steps or 0

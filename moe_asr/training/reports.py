"""What a run tells while it trains: lines on the terminal and in train.log, metrics.jsonl, TensorBoard, a bar."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from moe_asr.errors import UserError
from moe_asr.files import atomic_write


class Reports:
    """All outputs of one run; with `silent` (processes other than the first) none.

    Args:
        run_dir: where train.log, metrics.jsonl and tensorboard/ go
        tensorboard: whether to write TensorBoard's files
        position: (epoch, batch) the run goes on from; what an interrupted run recorded after it is dropped, for that
            part of the run comes again
        step: updates made so far, for TensorBoard
    """

    def __init__(
        self, run_dir: Path, tensorboard: bool, position: tuple[int, int] = (0, 0), step: int = 0, silent: bool = False
    ) -> None:
        self.silent = silent
        self.writer: Any = None
        self._bar: Progress | None = None
        self._console = Console(highlight=False, soft_wrap=True)
        if silent:
            return
        run_dir.mkdir(parents=True, exist_ok=True)
        self._metrics, self._skipped = run_dir / "metrics.jsonl", run_dir / "skipped.jsonl"
        self._log = run_dir / "train.log"
        for path in (self._metrics, self._skipped):
            _drop_after(path, position)
        if tensorboard:
            self.writer = _summary_writer(run_dir / "tensorboard", step)

    def say(self, line: str, log_only: bool = False) -> None:
        """One line for people, on the terminal (above the progress bar) and in train.log."""
        if self.silent:
            return
        _append(self._log, line)
        if not log_only:
            if self._bar:
                self._bar.console.print(line, markup=False)
            else:
                print(line, flush=True)

    def record(self, values: dict) -> None:
        """One line of metrics.jsonl, and every number in it as a TensorBoard scalar over `values["step"]`."""
        if self.silent:
            return
        _append(self._metrics, json.dumps(values))
        if self.writer:
            for name, value in _flat(values):
                if name not in ("step", "batch"):
                    self.writer.add_scalar(name, value, values["step"])

    def skipped(self, values: dict) -> None:
        """One line of skipped.jsonl, which only exists if there is something in it."""
        if not self.silent:
            _append(self._skipped, json.dumps(values, ensure_ascii=False))

    def progress(self, done: int, total: int | None, text: str) -> None:
        """Moves the bar on a terminal; elsewhere does nothing."""
        if self.silent or not self._console.is_terminal:
            return
        if self._bar is None:
            columns = (BarColumn(20), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.add_task("")
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done, total=total, description=text)

    @property
    def on_terminal(self) -> bool:
        return self._console.is_terminal

    def close(self) -> None:
        """Takes the bar away and closes TensorBoard's file; call it once, also after an error."""
        if self.silent:
            return
        if self._bar:
            self._bar.stop()
        if self.writer:
            self.writer.close()


def _append(path: Path, line: str) -> None:
    try:
        with open(path, "a", encoding="utf-8") as file:
            print(line, file=file)
    except OSError as error:  # of a full disk Python does not say which
        raise UserError(f"cannot write {path} ({error.strerror}); put that right and start again") from error


def _drop_after(path: Path, position: tuple[int, int]) -> None:
    """Keeps the records up to a position; a last line cut short by a kill goes as well."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
            if (record["epoch"], record["batch"]) <= position:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    with atomic_write(path) as file:
        file.writelines(kept)


def _flat(values: dict, prefix: str = "") -> list[tuple[str, float]]:
    """Nested numbers as `outer/inner` and value."""
    found = []
    for name, value in values.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)):
            found.append((prefix + name, value))
    return found


def _summary_writer(folder: Path, step: int):
    """TensorBoard's writer; on a resumed run it hides what was written after `step`."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("TensorBoard is not installed; `pip install tensorboard` or set tensorboard to false") from None
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)

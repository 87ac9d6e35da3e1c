"""Loading by several processes; one that dies is replaced, and nothing is lost or repeated."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator

import torch
from torch.utils.data import DataLoader, Dataset, Subset

from moe_asr.errors import UserError
from moe_asr.signals import STOP_SIGNALS

MOST_DEATHS = 3  # in a row, without an item between them


def load_in_order(items: Dataset, num_workers: int, say: Callable[[str], None]) -> Iterator:
    """`items[0]`, `items[1]`, ..., loaded ahead by `num_workers` processes, or here if there are none.

    When a process dies (killed for its memory, say), all are replaced, and go on with the first item that was not yet
    given out. That is noticed within 5 s.

    Args:
        say: is told of each death

    Raises:
        UserError: they die again and again.
    """
    done = deaths = 0
    while True:
        loader = DataLoader(
            Subset(items, range(done, len(items))),
            batch_size=None,
            num_workers=num_workers,
            pin_memory=torch.cuda.is_available(),
        )
        iterator = _start(loader)
        try:
            for item in iterator:
                done, deaths = done + 1, 0
                yield item
            return
        except (RuntimeError, OSError, EOFError) as error:
            workers = getattr(iterator, "_workers", [])
            dead = [worker for worker in workers if not worker.is_alive()]
            if not dead:
                raise
            deaths += 1
            reason = f"a process that loads data died ({_how(dead[0].exitcode)})"
            if deaths > MOST_DEATHS:
                raise UserError(
                    f"{reason}, as {MOST_DEATHS} did before it without loading anything: is there enough memory? "
                    "fewer num_workers need less; 0 loads in the process itself"
                ) from error
        finally:
            # They do not heed SIGTERM, and one that waits for a lock of a dead one would never see the end of the data.
            for worker in getattr(iterator, "_workers", []):
                worker.kill()
        say(f"{reason}; it was replaced")


def _start(loader: DataLoader) -> Iterator:
    """Starts the processes deaf to stop signals, from their first instruction on: one to the whole process group is for
    the training process, which still saves and ends its workers itself. And without torch's handler of SIGCHLD, which
    would raise an error in the middle of whatever the main thread is at, such as an update or the writing of a
    checkpoint."""
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGCHLD)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # which a new process inherits
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if main:
            signal.signal(signal.SIGCHLD, handler)


def _how(code: int | None) -> str:
    return f"killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"

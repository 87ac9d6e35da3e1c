"""Signals that ask training or decoding to stop: the step or batch is finished and saved first.

| signal | sent by | the process ends with |
| --- | --- | --- |
| SIGINT | Ctrl-C | KeyboardInterrupt, which commands turn into exit code 130 |
| SIGTERM | `kill`, a scheduler before its time limit | exit code 143 |
| SIGUSR1 | a scheduler that was asked to warn (`--signal=USR1@60`) | exit code 138 |

A second SIGINT does not wait for it.
"""

from __future__ import annotations

import signal
import threading

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopSignals:
    """Context within which the first stop signal is only noted, in `received`.

    Outside the main thread Python allows no handlers; there the context does nothing.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _note(self, number: int, frame) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or signal.Signals(number)

    def leave(self, received: signal.Signals | None = None) -> None:
        """Ends the process the way the received signal asks for; call it when everything is saved.

        Args:
            received: a signal that another process got in place of this one

        Raises:
            KeyboardInterrupt: after SIGINT.
            SystemExit: with code 128 + the signal's number after the others.
        """
        received = received or self.received
        assert received is not None
        if received == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + received)

import os
import signal
import threading

import pytest

from moe_asr.signals import StopSignals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_schedulers_signals(number, code):
    signals, before = StopSignals(), signal.getsignal(number)
    with signals:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # schedulers repeat themselves; nothing is cut short
        assert signals.received == number
    assert signal.getsignal(number) is before
    with pytest.raises(SystemExit) as stop:
        signals.leave()
    assert stop.value.code == code


def test_a_second_interrupt_does_not_wait():
    signals = StopSignals()
    with pytest.raises(KeyboardInterrupt), signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("still here")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        signals.leave()


def test_other_threads_install_nothing():
    handler, found = signal.getsignal(signal.SIGTERM), []

    def enter():
        with StopSignals():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [handler]

import os
import signal

import pytest
from torch.utils.data import Dataset
from torch.utils.data._utils import signal_handling

from moe_asr.data import workers
from moe_asr.data.workers import load_in_order
from moe_asr.errors import UserError
from moe_asr.signals import STOP_SIGNALS


class Items(Dataset):
    """Numbers; whoever loads number `fatal` dies, the first `times` times."""

    def __init__(self, folder, fatal, times=1):
        self.folder, self.fatal, self.times = folder, fatal, times

    def __len__(self):
        return 12

    def __getitem__(self, number):
        deaths = len(list(self.folder.iterdir()))
        if number == self.fatal and deaths < self.times:
            (self.folder / f"death-{deaths}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number


def test_a_worker_that_dies_is_replaced_and_nothing_is_lost(tmp_path):
    before, said, seen = signal.getsignal(signal.SIGCHLD), [], []
    for number in load_in_order(Items(tmp_path, fatal=5), 2, said.append):
        assert signal.getsignal(signal.SIGCHLD) is before  # no error out of nowhere, in the middle of an update
        seen.append(number)
    assert seen == list(range(12))
    assert said == ["a process that loads data died (killed by SIGKILL); it was replaced"]


def test_workers_that_always_die_end_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "MOST_DEATHS", 1)
    said, seen = [], []
    with pytest.raises(UserError, match="killed by SIGKILL.*fewer num_workers"):
        for number in load_in_order(Items(tmp_path, fatal=0, times=99), 1, said.append):
            seen.append(number)
    assert seen == [] and len(said) == 1


def test_errors_of_the_items_are_not_deaths(tmp_path):
    class Broken(Items):
        def __getitem__(self, number):
            raise RuntimeError("broken item")

    for number in (0, 1):
        with pytest.raises(RuntimeError, match="broken item"):
            next(load_in_order(Broken(tmp_path, 0), number, pytest.fail))


def test_a_stop_signal_reaches_no_worker_not_even_one_that_is_being_started(monkeypatch):
    """As when a scheduler signals the whole process group; torch's own handler would end the process."""
    install = signal_handling._set_worker_signal_handlers

    def install_and_signal():
        install()
        for number in STOP_SIGNALS:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(signal_handling, "_set_worker_signal_handlers", install_and_signal)
    mask, said = signal.pthread_sigmask(signal.SIG_BLOCK, []), []
    assert list(load_in_order(range(6), 2, said.append)) == list(range(6)) and not said
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask

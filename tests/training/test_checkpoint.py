import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

import moe_asr.files
from moe_asr.errors import UserError
from moe_asr.training import checkpoint as ckpt

STATE = {"milestone": True, "valid": 0.5, "progress": {"step": 1, "window": [0.1, 1e-30]}}


def write(root: Path, step: int, value: float = 1.0, **state) -> Path:
    folder = ckpt.checkpoint_folder(root, step)
    weights = {"w": torch.full((300,), value), "half": torch.full((2,), value, dtype=torch.bfloat16)}
    weights["n"] = torch.tensor(step)
    ckpt.write_checkpoint(folder, weights, {"w|step": torch.tensor(float(step))}, {**STATE, **state})
    return folder


def names(folders) -> list[int]:
    return [int(folder.name.split("-")[1]) for folder in folders]


def test_round_trip(tmp_path):
    folder = write(tmp_path, 7, 0.1)
    assert folder.name == "step-00000007"
    assert sorted(os.listdir(folder)) == ["model.safetensors", "optimizer.safetensors", "state.json"]
    assert ckpt.read_state(folder) == STATE
    tensors = ckpt.read_tensors(folder, ckpt.MODEL)
    assert torch.equal(tensors["w"], torch.full((300,), 0.1)) and tensors["half"].dtype == torch.bfloat16
    assert ckpt.read_tensors(folder, ckpt.OPTIMIZER) == {"w|step": torch.tensor(7.0)}
    assert ckpt.newest_checkpoint(tmp_path, print) == folder


def test_tensors_that_are_views_are_stored_whole(tmp_path):
    view = torch.arange(6.0).reshape(2, 3).t()
    ckpt.write_checkpoint(tmp_path / "step-00000001", {"v": view}, {}, STATE)
    assert torch.equal(ckpt.read_tensors(tmp_path / "step-00000001", ckpt.MODEL)["v"], view)


@pytest.mark.parametrize("file", [ckpt.MODEL, ckpt.OPTIMIZER, ckpt.STATE])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path, file, damage):
    good, bad = write(tmp_path, 9), write(tmp_path, 10)
    content = bytearray((bad / file).read_bytes())
    if damage == "flip":
        content[len(content) * 2 // 3] ^= 1
        (bad / file).write_bytes(content)
    elif damage == "truncate":
        (bad / file).write_bytes(content[:-5])
    else:
        (bad / file).unlink()
    said = []
    assert ckpt.newest_checkpoint(tmp_path, said.append) == good
    assert len(said) == 1 and "step-00000010" in said[0] and file in said[0] and "\n" not in said[0]
    for folder in (good, bad):
        (folder / file).write_bytes(b"")
    with pytest.raises(UserError, match="none of the 2 checkpoints"):
        ckpt.newest_checkpoint(tmp_path, said.append)


def test_every_flipped_byte_of_the_state_is_seen(tmp_path):
    """But for white space, which means nothing."""
    folder = write(tmp_path, 1)
    content = (folder / ckpt.STATE).read_bytes()
    for index, byte in enumerate(content):
        if not chr(byte).isspace():
            (folder / ckpt.STATE).write_bytes(content[:index] + bytes([byte ^ 1]) + content[index + 1 :])
            with pytest.raises(UserError, match="damaged"):
                ckpt.read_state(folder)


@pytest.mark.parametrize("call", ["open", "fsync", "rename"])
def test_a_write_that_dies_leaves_what_was_there(tmp_path, monkeypatch, call):
    """Each way through: at the first, second, ... such call, until the write goes through."""
    write(tmp_path, 1)
    survived = 0
    for at in range(100):
        calls = 0
        real = getattr(os, call) if call != "open" else ckpt.save_file

        def dies(*args, calls_at=at, real=real):
            nonlocal calls
            calls += 1
            if calls == calls_at + 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(ckpt if call == "open" else os, "save_file" if call == "open" else call, dies)
            try:
                write(tmp_path, 2, 5.0)
                break
            except UserError as error:
                survived += 1
                text = str(error)
        assert "No space left on device" in text and "the last good one is step-0000000" in text and "\n" not in text
        newest = ckpt.newest_checkpoint(tmp_path, pytest.fail)
        assert names([newest])[0] in (1, 2)
        assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]
        if names([newest]) == [2]:  # the failure came after the rename
            break
    assert survived >= 1
    assert ckpt.newest_checkpoint(tmp_path, pytest.fail).name == "step-00000002"


def test_the_write_of_a_killed_process_is_not_seen(tmp_path, monkeypatch):
    """`kill -9` runs no clean-up: a half-written neighbour stays, hidden."""
    write(tmp_path, 1)
    monkeypatch.setattr(moe_asr.files, "_remove", lambda path: None)

    class Killed(BaseException):
        pass

    def dies(*args):
        raise Killed

    monkeypatch.setattr(os, "rename", dies)
    with pytest.raises(Killed):
        write(tmp_path, 2)
    assert any(name.startswith(".step-00000002") for name in os.listdir(tmp_path))
    assert names(ckpt.find_checkpoints(tmp_path)) == [1]


def test_killed_at_every_system_call(tmp_path):
    """`kill -9` before and after each of some hundred calls: two good checkpoints, and no leftovers after the next."""
    fast = Path("/dev/shm")  # where waiting for the disk takes no time
    folder = Path(tempfile.mkdtemp(dir=fast if os.access(fast, os.W_OK) else tmp_path))
    script = Path(__file__).with_name("killed_writes.py")
    done = subprocess.run([sys.executable, script, folder], capture_output=True, text=True)
    shutil.rmtree(folder)
    if "lets no process be traced" in done.stderr:
        pytest.skip("this system lets no process be traced")
    assert done.returncode == 0, done.stderr
    attempts = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(attempts) > 100 and [killed for killed, *_ in attempts] == [True] * (len(attempts) - 1) + [False]
    steps = [int(newest[-1]) for _, newest, *_ in attempts]
    assert set(steps) == {2, 3} and steps == sorted(steps)  # the old until the rename, the new from there on
    for _, newest, good, said, left in attempts:
        assert good >= 2 and said == [] and left == [newest, "step-00000004"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB, made by mounting; what is there is removed with it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"mounting is not permitted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_costs_nothing_but_the_new_checkpoint(small_disk):
    write(small_disk, 1)
    good = write(small_disk, 2)
    weights = {"w": torch.ones(300_000)}  # more than there is room for
    with pytest.raises(UserError, match="No space left on device.*the last good one is step-00000002; free space"):
        ckpt.write_checkpoint(ckpt.checkpoint_folder(small_disk, 3), weights, {}, STATE)
    assert sorted(os.listdir(small_disk)) == ["step-00000001", "step-00000002"]
    assert ckpt.newest_checkpoint(small_disk, pytest.fail) == good
    assert write(small_disk, 3) == ckpt.newest_checkpoint(small_disk, pytest.fail)


def test_a_folder_that_cannot_be_written_to(small_disk):
    good = write(small_disk, 1)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(UserError, match="Read-only file system.*the last good one is step-00000001"):
        write(small_disk, 2)
    assert ckpt.newest_checkpoint(small_disk, pytest.fail) == good


def test_a_removal_cut_short_is_finished_by_the_next(tmp_path):
    folders = [write(tmp_path, step) for step in range(1, 5)]
    (folders[0] / ckpt.STATE).unlink()
    ckpt.prune_checkpoints(tmp_path, 2, [])
    assert names(ckpt.find_checkpoints(tmp_path)) == [3, 4]


def test_a_real_file_system_error_is_one_line(tmp_path):
    write(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(
            UserError, match="cannot write the checkpoint .*File too large.*last good one is step-00000001"
        ):
            write(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == ["step-00000001"]


def test_find_sorts_by_number_and_ignores_the_rest(tmp_path):
    for step in (100000000, 2, 99999999):
        write(tmp_path, step)
    (tmp_path / "step-x").mkdir()
    (tmp_path / "notes").mkdir()
    assert names(ckpt.find_checkpoints(tmp_path)) == [2, 99999999, 100000000]
    assert ckpt.find_checkpoints(tmp_path / "missing") == []
    assert ckpt.newest_checkpoint(tmp_path / "missing", print) is None


def test_choice_of_milestones(tmp_path):
    for step, valid in enumerate([0.3, 0.1, None, 0.2, 0.3], start=1):
        write(tmp_path, step, valid=valid)
    for step, valid in ((6, 0.01), (7, 0.99)):
        write(tmp_path, step, milestone=False, valid=valid)
    assert names(ckpt.choose_milestones(tmp_path, "last", 2)) == [4, 5]
    assert names(ckpt.choose_milestones(tmp_path, "lowest", 3)) == [1, 2, 4]
    assert names(ckpt.choose_milestones(tmp_path, "lowest", 99)) == [1, 2, 4, 5]
    assert names(ckpt.choose_milestones(tmp_path, "highest", 1)) == [1]  # the earliest among equals
    assert names(ckpt.choose_milestones(tmp_path, "highest", 3)) == [1, 4, 5]


def test_pruning_keeps_the_newest_and_the_named(tmp_path):
    folders = [write(tmp_path, step) for step in range(1, 7)]
    (folders[5] / ckpt.STATE).write_text("{")  # not counted among the newest good ones
    assert names(ckpt.prune_checkpoints(tmp_path, 2, [folders[0]])) == [2, 3]
    assert names(ckpt.find_checkpoints(tmp_path)) == [1, 4, 5, 6]


def test_average_is_the_exact_mean(tmp_path):
    """Also where a sum in float32 would lose the small values."""
    values = [1e8, 1.0, -1e8, 3.0]
    folders = [write(tmp_path, step, value) for step, value in enumerate(values, start=1)]
    mean = ckpt.average_checkpoints(folders)
    assert torch.equal(mean["w"], torch.full((300,), 1.0)) and mean["w"].dtype == torch.float32
    assert mean["half"].dtype == torch.bfloat16
    assert mean["n"] == 4
    assert torch.equal(ckpt.average_checkpoints(folders[1:2])["w"], torch.ones(300))


def test_average_refuses_other_weights_and_damage(tmp_path):
    folders = [write(tmp_path, 1), ckpt.checkpoint_folder(tmp_path, 2)]
    ckpt.write_checkpoint(folders[1], {"w": torch.ones(3)}, {}, STATE)
    with pytest.raises(UserError, match="different weights"):
        ckpt.average_checkpoints(folders)
    (folders[0] / ckpt.MODEL).write_bytes(b"x")
    with pytest.raises(UserError, match="damaged"):
        ckpt.average_checkpoints(folders)

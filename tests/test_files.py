import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moe_asr import files
from moe_asr.errors import UserError
from moe_asr.files import atomic_folder, atomic_write, check_folder_name, folder_bytes, remove_leftovers


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_write_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "new" / "a.txt"
    for text in ("old", "new é"):
        with atomic_write(path) as file:
            file.write(text)
    assert path.read_text("utf-8") == "new é"
    assert names(path.parent) == ["a.txt"]


def test_write_bytes_and_the_rights_of_an_ordinary_file(tmp_path):
    with atomic_write(tmp_path / "a", "wb") as file:
        file.write(b"\x00\xff")
    (tmp_path / "ordinary").touch()
    assert (tmp_path / "a").read_bytes() == b"\x00\xff"
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_write_is_not_visible_before_its_end(tmp_path):
    (tmp_path / "a").write_text("old")
    with atomic_write(tmp_path / "a") as file:
        file.write("new")
        file.flush()
        assert (tmp_path / "a").read_text() == "old"


def test_the_old_file_is_exchanged_not_overwritten(tmp_path):
    (tmp_path / "a").write_text("old")
    os.link(tmp_path / "a", tmp_path / "reader")
    with atomic_write(tmp_path / "a") as file:
        file.write("new")
    assert (tmp_path / "reader").read_text() == "old"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_error_mid_write_leaves_the_old_file_alone(tmp_path, error):
    (tmp_path / "a").write_text("old")
    with pytest.raises(error), atomic_write(tmp_path / "a") as file:
        file.write("new")
        raise error
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_write_follows_a_link(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    with atomic_write(tmp_path / "link") as file:
        file.write("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_names_the_file_and_keeps_the_old_one(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("old")
    monkeypatch.setattr(files.os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left") as caught, atomic_write(tmp_path / "a") as file:
        file.write("new")
    assert caught.value.filename == str(tmp_path / "a")
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_full_disk_for_real(tmp_path, monkeypatch):
    (tmp_path / "full").symlink_to("/dev/full")
    monkeypatch.setattr(files, "_neighbour", lambda path: tmp_path / "full")
    with pytest.raises(OSError) as caught, atomic_write(tmp_path / "a") as file:
        file.write("new")
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path / "a")
    assert names(tmp_path) == []


def test_a_command_reports_a_full_disk_in_one_line(tmp_path, monkeypatch, capsys):
    from dataclasses import make_dataclass

    from moe_asr.config import run_command

    def write(config):
        with atomic_write(tmp_path / "a") as file:
            file.write("new")

    monkeypatch.setattr(files.os, "fsync", no_space)
    with pytest.raises(SystemExit) as caught:
        run_command(make_dataclass("Nothing", []), write, [])
    assert caught.value.code == 1
    assert capsys.readouterr().err == f"error: No space left on device: {tmp_path / 'a'}\n"


def test_folder_must_be_a_folder_we_may_write_to(tmp_path):
    (tmp_path / "a").write_text("a file")
    with pytest.raises(OSError), atomic_write(tmp_path / "a" / "b") as file:
        file.write("new")
    with pytest.raises(OSError), atomic_folder(tmp_path / "a" / "b"):
        pass
    assert names(tmp_path) == ["a"]


def fill(folder: Path, text: str) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "x").write_text(text)


@pytest.mark.parametrize("can_exchange", [True, False])
def test_folder_replaces_and_leaves_nothing_else(tmp_path, monkeypatch, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    for text in ("old", "new"):
        with atomic_folder(tmp_path / "a" / "b") as folder:
            fill(folder, text)
    assert (tmp_path / "a" / "b" / "sub" / "x").read_text() == "new"
    assert names(tmp_path / "a") == ["b"] and names(tmp_path / "a" / "b") == ["sub"]


def test_error_mid_folder_leaves_the_old_folder_alone(tmp_path):
    with atomic_folder(tmp_path / "a") as folder:
        fill(folder, "old")
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "a") as folder:
        fill(folder, "new")
        raise RuntimeError
    assert (tmp_path / "a" / "sub" / "x").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_failed_second_rename_puts_the_old_folder_back(tmp_path, monkeypatch):
    with atomic_folder(tmp_path / "a") as folder:
        fill(folder, "old")
    rename, calls = os.rename, []

    def second_fails(source, target):
        calls.append(source)
        if len(calls) == 2:
            raise OSError(errno.EIO, "broken")
        rename(source, target)

    monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    monkeypatch.setattr(files.os, "rename", second_fails)
    with pytest.raises(OSError, match="broken"), atomic_folder(tmp_path / "a") as folder:
        fill(folder, "new")
    assert (tmp_path / "a" / "sub" / "x").read_text() == "old"
    assert names(tmp_path) == ["a"]


WRITER = """
import sys
from moe_asr.files import atomic_folder
for step in range(10**6):
    with atomic_folder(sys.argv[1]) as folder:
        for name in "ab":
            (folder / name).write_text(str(step) * 1000)
    print(step, flush=True)
"""


def test_kill_at_any_point_leaves_a_whole_folder(tmp_path):
    for wait in (0.0, 0.003, 0.007, 0.011):
        path = tmp_path / "checkpoint"
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"0\n"
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert names(path) == ["a", "b"]
        first, second = (path / name for name in "ab")
        assert first.read_text() == second.read_text() != ""
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["checkpoint"]


def test_remove_leftovers_touches_nothing_else(tmp_path):
    (tmp_path / ".keep").touch()
    (tmp_path / "a.tmp-b").touch()
    (tmp_path / ".a.tmp-0123abcd").touch()
    (tmp_path / ".b.tmp-0123abcd").mkdir()
    assert remove_leftovers(tmp_path) == [".a.tmp-0123abcd", ".b.tmp-0123abcd"]
    assert names(tmp_path) == [".keep", "a.tmp-b"]


def test_size_of_a_folder(tmp_path):
    for name, size in (("a", 3), ("b/c", 4), ("b/d/e", 0)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * size)
    assert folder_bytes(tmp_path) == 7


@pytest.mark.parametrize("name", ["", ".", "..", "/etc", "../x", "a/b", "a/", "a\0"])
def test_names_that_lead_elsewhere_are_no_folder_names(name):
    with pytest.raises(UserError, match="x.txt names '.*', which cannot be part of a folder's name"):
        check_folder_name(name, "x.txt")


@pytest.mark.parametrize("name", ["a", "...", "a..b", ".a", "Zo\u00eb 1", "a\\b"])
def test_other_names_are(name):
    check_folder_name(name, "x.txt")

"""Writing files and folders so that whoever reads them sees the old content or the new, never a part of it.

It goes first to a hidden neighbour (`.name.tmp-xxxxxxxx`), is flushed to the disk, and is then renamed into
place, which file systems do in one step. After an error the neighbour is removed and the old content is still there.
After `kill -9` the old content is there too, and the neighbour lies about until `remove_leftovers`.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from moe_asr.errors import UserError

_LEFTOVER = ".tmp-"


@contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO]:
    """Opens a file which takes its place under `path` only when the block ends without an error.

    Args:
        path: the file; missing parent folders are made, and a symbolic link is followed, not replaced
        mode: "w" for UTF-8 text, "wb" for bytes

    Raises:
        OSError: with `path` as its `filename`, also for a full disk, where Python itself names no file.
    """
    assert mode in ("w", "wb"), mode
    path = Path(os.path.realpath(path))
    temporary = _neighbour(path)
    with _cleaned_up(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync(path.parent)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yields an empty folder to fill, which takes the place of `path` only when the block ends without an error.

    Raises:
        OSError: as for `atomic_write`.
    """
    path = Path(os.path.realpath(path))
    temporary = _neighbour(path)
    with _cleaned_up(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        for folder, _, names in os.walk(temporary):
            for name in names:
                _sync(Path(folder, name))
            _sync(Path(folder))
        _move_folder(temporary, path)
        _sync(path.parent)


def lock_folder(folder: str | Path, doing: str) -> int:
    """Keeps a second process out of a folder until the descriptor returned is closed, however the process ends.

    Raises:
        UserError: another process has it; `doing` says in the message what that one does, as "decoding into".
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(f"another process is {doing} {folder}: wait for it, or take another folder") from None
    return descriptor


def remove_leftovers(folder: str | Path) -> list[str]:
    """Removes what killed writers left in `folder` and returns the names. Only for when no process is writing there."""
    leftovers = list(Path(folder).glob(f".*{_LEFTOVER}*"))
    for leftover in leftovers:
        _remove(leftover)
    return sorted(p.name for p in leftovers)


def folder_bytes(folder: str | Path) -> int:
    """Size of all files in a folder."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def check_folder_name(name: str, source: str | Path) -> None:
    """For names that become one part of a path; `source` is where this one comes from.

    Raises:
        UserError: it would lead to another folder.
    """
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise UserError(f"{source} names {name!r}, which cannot be part of a folder's name")


def _neighbour(path: Path) -> Path:
    return path.with_name(f".{path.name}{_LEFTOVER}{secrets.token_hex(4)}")


@contextmanager
def _cleaned_up(path: Path, temporary: Path) -> Iterator[None]:
    """Removes `temporary` whatever happens, and lets an OSError of the block tell which file it was about."""
    try:
        yield
    except OSError as error:
        if error.filename is None or os.fspath(error.filename) == os.fspath(temporary):
            error.filename = str(path)
        raise
    finally:
        _remove(temporary)


def _move_folder(source: Path, target: Path) -> None:
    """Renames `source` to `target`; an old `target` is exchanged in one step where the system can, and removed."""
    if not target.exists():
        os.rename(source, target)
    elif _exchange(source, target):
        _remove(source)
    else:  # two steps: killed between them, the old content is found under the hidden name
        old = _neighbour(target)
        os.rename(target, old)
        try:
            os.rename(source, target)
        except BaseException:
            os.rename(old, target)
            raise
        _remove(old)


def _exchange(first: Path, second: Path) -> bool:
    """Swaps two names in one step with Linux's renameat2; False where system or file system cannot."""
    at_cwd, rename_exchange = -100, 2
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(at_cwd, os.fsencode(first), at_cwd, os.fsencode(second), rename_exchange) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(second))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Makes a file, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems which cannot sync a folder
            raise
    finally:
        os.close(descriptor)

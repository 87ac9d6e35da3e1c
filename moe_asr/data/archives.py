"""Unpacking archives that anybody may have made: nothing outside the folder, no links out, no devices, no bombs."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from moe_asr.errors import UserError
from moe_asr.files import atomic_folder

RATIO, SLACK = 100, 100 << 20  # an archive may hold so many times its own size, and so many bytes besides
_MOST = 20_000_000  # files
_BLOCK = 1 << 20
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, struct.error)
_DAMAGED += (
    ValueError,
    NotImplementedError,
    RuntimeError,
    MemoryError,
    OverflowError,
)  # a password, a wrong method ...
_ODD_NAMES = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EINVAL, errno.ENOTEMPTY)


def extract(archive: str | Path, folder: str | Path) -> None:
    """Unpacks a .zip or .tar archive into a folder, which appears only when all is unpacked.

    Files are written first. Links of a .tar come last, and only those to places inside the folder, so that no name can
    go through one.

    Raises:
        UserError: the archive is damaged, cut off or of another kind, or holds a path or link that leads out of the
            folder, a device, or far more bytes than it has itself, or than there is room for.
    """
    try:
        with atomic_folder(folder) as temporary:
            budget = _budget(Path(archive), temporary)
            if zipfile.is_zipfile(archive):
                _extract_zip(archive, temporary, budget)
            else:
                _extract_tar(archive, temporary, budget)
    except UserError:
        raise
    except OSError as error:
        if error.errno is None or error.errno in _ODD_NAMES:  # None: of a decompressor
            raise _damaged(archive, error) from None
        raise
    except _DAMAGED as error:
        raise _damaged(archive, error) from None
    except Exception as error:
        if type(error).__module__ in ("lzma", "_lzma"):  # which not every Python has
            raise _damaged(archive, error) from None
        raise


def _damaged(archive: str | Path, error: Exception) -> UserError:
    return UserError(f"cannot unpack {archive}: {error or type(error).__name__}; remove it to download it again")


def _budget(archive: Path, folder: Path) -> Callable[[int], None]:
    """A function that is told of each file's size before it is written."""
    limit = RATIO * archive.stat().st_size + SLACK
    free = shutil.disk_usage(folder).free
    total = count = 0

    def spend(size: int) -> None:
        nonlocal total, count
        total, count = total + size, count + 1
        if size < 0 or total > limit or count > _MOST:
            raise UserError(f"{archive} is not safe to unpack: it holds over {RATIO} times its own size, or is damaged")
        if total > free:
            raise UserError(f"no room to unpack {archive}: {total / 1e9:.1f} GB and more, {free / 1e9:.1f} GB are free")

    return spend


def _extract_zip(archive: str | Path, folder: Path, spend: Callable[[int], None]) -> None:
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            _inside(member.filename, archive)
            mode = member.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise UserError(f"{archive} is not safe to unpack: '{member.filename}' is a link or device")
            spend(member.file_size)
        for member in file.infolist():  # reads no more than file_size bytes, and compares their checksum
            file.extract(member, folder)


def _extract_tar(archive: str | Path, folder: Path, spend: Callable[[int], None]) -> None:
    if not hasattr(tarfile, "data_filter"):
        raise UserError("this Python cannot unpack tar archives safely: use 3.10.12, 3.11.4 or later")
    links: dict[PurePosixPath, tuple[bool, PurePosixPath]] = {}
    with tarfile.open(archive) as file:
        for member in file:
            path = _inside(member.name, archive)
            if member.issym() or member.islnk():
                links[path] = member.issym(), _target(path, member, archive)
            elif (member.isreg() or member.isdir()) and not member.issparse():
                spend(member.size)
                if member.isdir() and not path.parts:
                    continue
                file.extract(member, folder, filter="data")
            else:
                raise UserError(f"{archive} is not safe to unpack: '{member.name}' is a device, or a file with holes")
        # a damaged header looks like the end to `tarfile`, and so does the end of a file that was cut off
        file.fileobj.seek(file.offset)
        if file.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("it is damaged or cut off")
        while block := file.fileobj.read(_BLOCK):  # to the end, where gzip has its checksum
            spend(len(block))
    for path, (symbolic, target) in links.items():
        if any(parent in links for parent in path.parents) or not symbolic and target in links:
            raise UserError(f"{archive} is not safe to unpack: '{path}' goes through a link")
    for path, (symbolic, target) in links.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        if symbolic:
            os.symlink(target, folder / path)
        elif (folder / target).is_file():
            os.link(folder / target, folder / path)
    for path in links:
        if not (folder / path).exists():
            raise tarfile.ReadError(f"'{path}' is a link to nothing")


def _inside(name: str, archive: str | Path) -> PurePosixPath:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or not name.isprintable() or path.parts and ":" in path.parts[0]:
        raise UserError(f"{archive} is not safe to unpack: it holds '{name}'")
    return path


def _target(path: PurePosixPath, member: tarfile.TarInfo, archive: str | Path) -> PurePosixPath:
    """What a link points to: from its own folder if it is symbolic, from the top otherwise.

    It may go up at its beginning alone: past another link, up is not where it looks to be.
    """
    target = PurePosixPath(member.linkname)
    ups = next((i for i, part in enumerate(target.parts) if part != ".."), len(target.parts))
    depth = len(path.parent.parts) if member.issym() else 0
    if target.is_absolute() or ups > depth or ".." in target.parts[ups:] or not path.parts or not target.parts:
        raise UserError(f"{archive} is not safe to unpack: '{path}' is a link to '{target}', out of the folder")
    return target

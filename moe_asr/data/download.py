"""Fetching corpora: downloads that resume and are checked, and archives that cannot write outside their folder."""

from __future__ import annotations

import hashlib
import http.client
import shutil
import tarfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path, PurePosixPath

from moe_asr.errors import UserError
from moe_asr.files import atomic_folder

_BLOCK = 1 << 20
_UNSAFE = getattr(tarfile, "FilterError", ())  # older Pythons have neither the filter nor its error


def download(url: str, path: str | Path, sha256: str | None, timeout: float = 30.0) -> None:
    """Downloads a file, unless it is there already; an interrupted download goes on where it stopped.

    What has come so far is in `path`.part; it takes its name when it is complete and its checksum right.

    Args:
        sha256: Of the whole file, in hexadecimal digits. None where the server makes the file anew for each request
            with other bytes; then the caller checks what is inside.
        timeout: Seconds without any data after which the server counts as gone.

    Raises:
        UserError: the server cannot be reached or breaks off, or what came is not the file expected.
    """
    path = Path(path)
    if path.is_file() and sha256 in (None, file_sha256(path)):
        return
    part = path.with_name(path.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        _continue(url, part, timeout)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        hint = f"; run again to go on with {part}" if part.exists() else ""
        raise UserError(f"cannot download {url}: {reason}{hint}") from None
    found = file_sha256(part)
    if sha256 not in (None, found):
        part.unlink()
        raise UserError(f"{url} is not the file expected: its SHA-256 is {found}, not {sha256}")
    part.replace(path)


def extract(archive: str | Path, folder: str | Path) -> None:
    """Unpacks a .zip or .tar archive into a folder, which appears only when all is unpacked.

    Raises:
        UserError: the archive is damaged, of another kind, or holds a path that leads out of the folder.
    """
    try:
        with atomic_folder(folder) as temporary:
            if zipfile.is_zipfile(archive):
                with zipfile.ZipFile(archive) as file:
                    for name in file.namelist():
                        _require_inside(name, archive)
                    file.extractall(temporary)
            else:
                if not hasattr(tarfile, "data_filter"):
                    raise UserError("this Python cannot unpack tar archives safely: use 3.10.12, 3.11.4 or later")
                with tarfile.open(archive) as file:
                    file.extractall(temporary, filter="data")
    except _UNSAFE as error:
        raise UserError(f"{archive} is not safe to unpack: {error}") from None
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"cannot unpack {archive}: {error}; remove it to download it again") from None


def fetch(url: str, folder: str | Path, sha256: str | None, holds: str) -> None:
    """Downloads an archive into a folder and unpacks it there, among what is there from other archives.

    Args:
        holds: A folder that the archive holds, as `LibriSpeech/dev-clean`. Where it is, nothing is done; it comes last
            and in one step, so that what is there is whole.

    Raises:
        UserError: as for `download` and `extract`, or the archive does not hold that folder.
    """
    folder = Path(folder)
    if (folder / holds).is_dir():
        return
    archive = folder / PurePosixPath(url).name
    unpacked = folder / f".{archive.name}.unpacked"
    download(url, archive, sha256)
    extract(archive, unpacked)
    if not (unpacked / holds).is_dir():
        raise UserError(f"{archive} holds no folder {holds}: is it another archive? remove it to download it again")
    for path in sorted(unpacked.rglob("*")):  # what lies beside that folder, such as lists of speakers
        name = path.relative_to(unpacked)
        if path.is_file() and not name.is_relative_to(holds):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            path.replace(folder / name)
    (folder / holds).parent.mkdir(parents=True, exist_ok=True)
    (unpacked / holds).replace(folder / holds)
    shutil.rmtree(unpacked)


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _continue(url: str, part: Path, timeout: float) -> None:
    """Appends what is missing to `part`."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing after what we have: the checksum tells whether it is right
            return
        raise
    with response, open(part, "ab" if response.status == 206 else "wb") as file:
        expected = int(response.headers.get("Content-Length", -1))
        got = 0
        while block := response.read(_BLOCK):
            file.write(block)
            got += len(block)
    if expected not in (-1, got):
        raise ConnectionError(f"the connection broke after {got} of {expected} bytes")


def _require_inside(name: str, archive: str | Path) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        raise UserError(f"{archive} is not safe to unpack: it holds '{name}'")

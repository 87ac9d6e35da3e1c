"""Fetching corpora: downloads that resume and are checked."""

from __future__ import annotations

import hashlib
import http.client
import shutil
import urllib.error
import urllib.request
from pathlib import Path, PurePosixPath

from moe_asr.data.archives import extract
from moe_asr.errors import UserError

_BLOCK = 1 << 20


def download(url: str, path: str | Path, sha256: str | None, timeout: float = 30.0) -> None:
    """Downloads a file, unless it is there already; an interrupted download goes on where it stopped.

    What has come so far is in `path`.part; it takes its name when it is complete and its checksum right.

    Args:
        sha256: Of the whole file, in hexadecimal digits. None where the server makes the file anew for each request
            with other bytes; then it starts from its beginning each time, and the caller checks what is inside.
        timeout: Seconds without any data after which the server counts as gone.

    Raises:
        UserError: the server cannot be reached or breaks off, or what came is not the file expected.
    """
    path = Path(path)
    if path.is_file() and sha256 in (None, file_sha256(path)):
        return
    part = path.with_name(path.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    if sha256 is None:
        part.unlink(missing_ok=True)  # the beginning of other bytes than those that would follow
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
        length = response.headers.get("Content-Length", "")
        expected = int(length) if length.isascii() and length.isdecimal() else -1
        got = 0
        while block := response.read(_BLOCK):
            file.write(block)
            got += len(block)
    if expected not in (-1, got):
        raise ConnectionError(f"the connection broke after {got} of {expected} bytes")

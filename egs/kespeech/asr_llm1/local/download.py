"""Downloads AISHELL-1 from OpenSLR, and unpacks it and the speakers in it as data_aishell/."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from moe_asr.config import run_command
from moe_asr.data.aishell import ADVICE, PARTS
from moe_asr.data.archives import extract
from moe_asr.data.download import download, fetch
from moe_asr.errors import UserError

ARCHIVE = "data_aishell.tgz"
MD5 = "2f494334227864a8a8fec932999db9d8"  # as in several public recipes; nobody has published a SHA-256


@dataclass(frozen=True)
class DownloadConfig:
    """Downloads AISHELL-1, 16 GB; what is there is left alone, and an interrupted download goes on.

    Args:
        out_dir: For the archive, which may be removed afterwards, and for data_aishell/.
        mirror: Of OpenSLR's resources; https://us.openslr.org/resources and https://openslr.elda.org/resources are
            others.
    """

    out_dir: str = "downloads"
    mirror: str = "https://www.openslr.org/resources"


def file_md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def unpack_speakers(wav: Path) -> int:
    """Unpacks wav/S0002.tar.gz, which holds train/S0002/, as wav/train/S0002, and so on; removes the archives.

    Returns:
        How many it were.

    Raises:
        UserError: an archive is damaged or holds no such folder.
    """
    archives = sorted(wav.glob("*.tar.gz"))
    for archive in archives:
        speaker, unpacked = archive.name.removesuffix(".tar.gz"), wav / f".{archive.name}.unpacked"
        extract(archive, unpacked)
        found = [unpacked / part / speaker for part in PARTS if (unpacked / part / speaker).is_dir()]
        if len(found) != 1:
            raise UserError(f"{archive} holds no folder {' or '.join(f'{part}/{speaker}' for part in PARTS)}")
        target = wav / found[0].relative_to(unpacked)
        target.parent.mkdir(exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)  # of an interrupted run
        found[0].replace(target)
        shutil.rmtree(unpacked)
        archive.unlink()
    return len(archives)


def fetch_corpus(config: DownloadConfig) -> None:
    out_dir = Path(config.out_dir)
    url, archive, corpus = f"{config.mirror}/33/{ARCHIVE}", out_dir / ARCHIVE, out_dir / "data_aishell"
    try:
        if not corpus.is_dir():
            download(url, archive, None)
            if file_md5(archive) != MD5:
                raise UserError(f"{archive} is not AISHELL-1's: remove it to download it again")
        fetch(url, out_dir, None, "data_aishell")
    except UserError as error:
        raise UserError(f"{error}; or by hand: {ADVICE}") from None
    count = unpack_speakers(corpus / "wav")
    print(f"{corpus}: {count} speakers unpacked" if count else f"{corpus}: there already")


if __name__ == "__main__":
    run_command(DownloadConfig, fetch_corpus)

"""Downloads TED-LIUM 3 from OpenSLR, and unpacks it as TEDLIUM_release-3/."""

from __future__ import annotations

from dataclasses import dataclass

from moe_asr.config import run_command
from moe_asr.data.download import fetch
from moe_asr.data.tedlium import ADVICE
from moe_asr.errors import UserError

NAME = "TEDLIUM_release-3"
# SHA-256 of the archive, as torchaudio 2.5 has it
SHA256 = "ad1e454d14d1ad550bc2564c462d87c7a7ec83d4dc2b9210f22ab4973b9eccdb"


@dataclass(frozen=True)
class DownloadConfig:
    """Downloads TED-LIUM 3, 51 GB; an interrupted download goes on, and nothing is done where the corpus is.

    Args:
        out_dir: For the archive, which may be removed afterwards, and for TEDLIUM_release-3/.
        mirror: Of OpenSLR's resources; https://us.openslr.org/resources and https://openslr.elda.org/resources are
            others.
    """

    out_dir: str = "downloads"
    mirror: str = "https://www.openslr.org/resources"


def download(config: DownloadConfig) -> None:
    try:
        fetch(f"{config.mirror}/51/{NAME}.tgz", config.out_dir, SHA256, NAME)
    except UserError as error:
        raise UserError(f"{error}; or by hand: {ADVICE}") from None
    print(f"{config.out_dir}/{NAME}")


if __name__ == "__main__":
    run_command(DownloadConfig, download)

"""Downloads the parts of LibriSpeech that the recipe needs from OpenSLR, and unpacks them as LibriSpeech/."""

from __future__ import annotations

from dataclasses import dataclass

from moe_asr.config import run_command
from moe_asr.data.download import fetch
from moe_asr.data.librispeech import ADVICE
from moe_asr.errors import UserError

# SHA-256 of the archives, as torchaudio 2.5 has them
ARCHIVES = {
    "dev-clean": "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3",
    "dev-other": "12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365",
    "test-clean": "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23",
    "test-other": "d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29",
    "train-clean-100": "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2",
    "train-clean-360": "146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf",
    "train-other-500": "ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2",
}


@dataclass(frozen=True)
class DownloadConfig:
    """Downloads parts of LibriSpeech; what is there is left alone, and an interrupted download goes on.

    Args:
        parts: Such as dev-clean, 337 MB; train-clean-100 has 6 GB, train-clean-360 has 23 GB.
        out_dir: For the archives, which may be removed afterwards, and for LibriSpeech/.
        mirror: Of OpenSLR's resources; https://us.openslr.org/resources and https://openslr.elda.org/resources are
            others.
    """

    parts: list[str]
    out_dir: str = "downloads"
    mirror: str = "https://www.openslr.org/resources"


def download(config: DownloadConfig) -> None:
    unknown = [part for part in config.parts if part not in ARCHIVES]
    if unknown:
        raise UserError(f"LibriSpeech has no part {unknown[0]}; it has {', '.join(ARCHIVES)}")
    for part in config.parts:
        try:
            fetch(f"{config.mirror}/12/{part}.tar.gz", config.out_dir, ARCHIVES[part], f"LibriSpeech/{part}")
        except UserError as error:
            raise UserError(f"{error}; or by hand: {ADVICE}") from None
        print(f"{config.out_dir}/LibriSpeech/{part}")


if __name__ == "__main__":
    run_command(DownloadConfig, download)

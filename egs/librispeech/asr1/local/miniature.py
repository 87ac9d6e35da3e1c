"""Makes a miniature of LibriSpeech: its folders, files and numbers of speakers; artificial voices and few sentences."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import soundfile

from moe_asr.config import run_command
from moe_asr.data.miniature import SAMPLE_RATE, pieces, sentences, speak
from moe_asr.files import atomic_write

# by part and speaker: how many sentences
PARTS = {
    "train-clean-100": {"19": 6, "26": 6, "32": 6, "39": 6},
    "train-clean-360": {"115": 8, "210": 8},
    "dev-clean": {"84": 4},
}


@dataclass(frozen=True)
class MiniatureConfig:
    """Makes LibriSpeech/ in small.

    Args:
        out_dir: Folder for LibriSpeech/.
        num_jobs: Processes.
    """

    out_dir: str = "downloads"
    num_jobs: int = 2


def make_miniature(config: MiniatureConfig) -> None:
    corpus = Path(config.out_dir) / "LibriSpeech"
    parts = {speaker: part for part, speakers in PARTS.items() for speaker in speakers}
    texts = {speaker: sentences(PARTS[part][speaker], speaker) for speaker, part in parts.items()}
    spoken = speak(texts, config.num_jobs)
    for speaker, part in parts.items():
        audio = iter(spoken[speaker])
        for chapter, lines in enumerate(pieces(texts[speaker], 2), 100):
            folder = corpus / part / speaker / str(chapter)
            folder.mkdir(parents=True, exist_ok=True)
            names = [f"{speaker}-{chapter}-{number:04d}" for number in range(len(lines))]
            for name in names:
                soundfile.write(folder / f"{name}.flac", next(audio), SAMPLE_RATE, subtype="PCM_16")
            with atomic_write(folder / f"{speaker}-{chapter}.trans.txt") as file:
                file.writelines(f"{name} {line.upper()}\n" for name, line in zip(names, lines))
    with atomic_write(corpus / "SPEAKERS.TXT") as file:
        file.write(";ID  |SEX|     SUBSET      |MINUTES| NAME\n")
        file.writelines(f"{speaker:<5}| M | {part:<16} | 0.30  | |nobody|\n" for speaker, part in parts.items())
    print(f"{corpus}: {sum(map(len, texts.values()))} utterances of {len(texts)} speakers")


if __name__ == "__main__":
    run_command(MiniatureConfig, make_miniature)

"""Makes the tables of the recipe from LibriSpeech: a base to train, and speakers whom it has not heard to adapt to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from moe_asr.config import run_command
from moe_asr.data.librispeech import read_part
from moe_asr.data.splits import read_speakers
from moe_asr.data.tables import write_table


@dataclass(frozen=True)
class PrepareConfig:
    """Makes the tables train.tsv, dev.tsv and target.tsv from LibriSpeech.

    Args:
        corpus_dir: Folder that holds LibriSpeech/.
        targets: Text file with the numbers of the speakers to adapt to; they are kept out of train.tsv.
        train_parts: Parts of the corpus for the base and for the pre-training of the experts, such as train-clean-100.
        out_dir: For the tables.
        dev_part: Part for the choice of checkpoints.
        target_part: Part that holds the speakers to adapt to.
    """

    corpus_dir: str
    targets: str
    train_parts: list[str]
    out_dir: str = "data"
    dev_part: str = "dev-clean"
    target_part: str = "train-clean-360"


def prepare(config: PrepareConfig) -> None:
    corpus, targets = Path(config.corpus_dir) / "LibriSpeech", read_speakers(config.targets)
    train = [row for part in config.train_parts for row in read_part(corpus, part) if row.speaker not in targets]
    tables = {
        "train": train,
        "dev": read_part(corpus, config.dev_part),
        "target": read_part(corpus, config.target_part, targets),
    }
    for name, rows in tables.items():
        write_table(Path(config.out_dir) / f"{name}.tsv", rows)
        print(f"{name}: {len(rows)} utterances of {len({row.speaker for row in rows})} speakers")


if __name__ == "__main__":
    run_command(PrepareConfig, prepare)

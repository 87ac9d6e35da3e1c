"""Makes the tables of the recipe from TED-LIUM 3: a base to train, and speakers whom it has not heard to adapt to."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from moe_asr.config import run_command
from moe_asr.data.splits import read_speakers
from moe_asr.data.tables import write_table
from moe_asr.data.tedlium import find_talk, find_talks, person, read_talk
from moe_asr.errors import UserError
from moe_asr.files import atomic_write


@dataclass(frozen=True)
class PrepareConfig:
    """Makes the tables train.tsv, dev.tsv and target.tsv from TED-LIUM 3, and init.txt, a list of talks of train.tsv.

    Args:
        corpus_dir: Folder that holds TEDLIUM_release-3/.
        targets: Text file with the names of the talks to adapt to; all talks of these people are kept out of train.tsv.
        out_dir: For the tables and the list.
        init_speakers: Talks of train.tsv, drawn at random, that give the initial experts.
        max_train: Talks of train.tsv, drawn at random; 0 takes all.
        seed: Of the draws.
    """

    corpus_dir: str
    targets: str
    out_dir: str = "data"
    init_speakers: int = 10
    max_train: int = 0
    seed: int = 0


def prepare(config: PrepareConfig) -> None:
    corpus, targets = Path(config.corpus_dir) / "TEDLIUM_release-3", read_speakers(config.targets)
    target_talks = [find_talk(corpus, talk) for talk in targets]
    held_out = {person(talk) for talk in targets}
    train_talks = [path for path in find_talks(corpus, "train") if person(path.stem) not in held_out]
    generator = random.Random(config.seed)
    if config.max_train:
        train_talks = sorted(generator.sample(train_talks, min(config.max_train, len(train_talks))))
    if config.init_speakers > len(train_talks):
        raise UserError(f"{config.init_speakers} initial speakers are wanted, but there are {len(train_talks)} talks")
    init = sorted(generator.sample([path.stem for path in train_talks], config.init_speakers))
    out_dir = Path(config.out_dir)
    with atomic_write(out_dir / "init.txt") as file:
        file.writelines(f"{talk}\n" for talk in init)
    for name, talks in (("train", train_talks), ("dev", find_talks(corpus, "dev")), ("target", target_talks)):
        rows = [row for talk in talks for row in read_talk(talk)]
        write_table(out_dir / f"{name}.tsv", rows)
        print(f"{name}: {len(rows)} segments of {len(talks)} talks")


if __name__ == "__main__":
    run_command(PrepareConfig, prepare)

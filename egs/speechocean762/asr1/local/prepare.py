"""Makes tables from speechocean762 (OpenSLR 101): English read by Mandarin speakers, adults and children.

Some speakers of the train set become the dev set, others are chosen to give the initial experts; the speakers of the
test set are those to adapt to. The accent column holds the age group.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path

from moe_asr.config import run_command
from moe_asr.data.kaldi_folder import read_kaldi_folder, read_map
from moe_asr.data.splits import spread
from moe_asr.data.tables import Row, write_table
from moe_asr.errors import UserError
from moe_asr.files import atomic_write

URL = "https://www.openslr.org/101"
ADULT = 18  # years; nobody in the corpus is 16 to 18


@dataclass(frozen=True)
class PrepareConfig:
    """Makes the tables of speechocean762 and the lists of its speakers.

    Args:
        corpus_dir: The unpacked corpus, with train/, test/ and WAVE/ in it.
        out_dir: For the tables train.tsv, dev.tsv and target.tsv, and the lists of speakers init.txt and target.txt.
        dev_speakers: Speakers of the train set that are kept for the dev set, from both age groups.
        init_speakers: Speakers of the train set that give the initial experts; they stay in train.tsv.
        seed: Of the choice of speakers.
    """

    corpus_dir: str
    out_dir: str = "data"
    dev_speakers: int = 10
    init_speakers: int = 10
    seed: int = 0


def read_part(corpus: Path, part: str) -> list[Row]:
    """The utterances of `train` or `test`, with the age group of their speaker as the accent.

    Raises:
        UserError: the corpus is not there or not complete.
    """
    if not (corpus / part / "text").is_file():
        raise UserError(f"no {corpus / part / 'text'}: get {URL}, unpack it and give its folder with --corpus_dir")
    ages = read_map(corpus / part / "spk2age")
    rows = []
    for row in read_kaldi_folder(corpus / part, corpus):
        if not ages.get(row.speaker, "").isdecimal():
            raise UserError(f"{corpus / part / 'spk2age'}: no age of speaker {row.speaker}")
        rows.append(replace(row, accent="adult" if int(ages[row.speaker]) > ADULT else "child", language="en"))
    return rows


def choose(rows: list[Row], count: int, seed: int) -> list[str]:
    """`count` speakers at random, in which the age groups have the shares that they have in `rows`."""
    group = {row.speaker: row.accent for row in rows}
    names = sorted(group)
    random.Random(seed).shuffle(names)
    return sorted(spread(sorted(names, key=group.__getitem__), count))


def prepare(config: PrepareConfig) -> None:
    corpus, out_dir = Path(config.corpus_dir), Path(config.out_dir)
    everyone, test = read_part(corpus, "train"), read_part(corpus, "test")
    dev_speakers = set(choose(everyone, config.dev_speakers, config.seed))
    train = [row for row in everyone if row.speaker not in dev_speakers]
    for name, speakers in (
        ("init", choose(train, config.init_speakers, config.seed)),
        ("target", sorted({row.speaker for row in test})),
    ):
        with atomic_write(out_dir / f"{name}.txt") as file:
            file.writelines(f"{speaker}\n" for speaker in speakers)
    dev = [row for row in everyone if row.speaker in dev_speakers]
    for name, rows in (("train", train), ("dev", dev), ("target", test)):
        write_table(out_dir / f"{name}.tsv", rows)
        print(f"{name}: {len(rows)} utterances of {len({row.speaker for row in rows})} speakers")


if __name__ == "__main__":
    run_command(PrepareConfig, prepare)

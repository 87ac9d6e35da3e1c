"""Makes the tables of one language: train, dev and test, from Common Voice, MLS, FLEURS or spoken digits."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from digits import read_digits
from read_speech import read_fleurs, read_mls

from moe_asr.config import run_command
from moe_asr.data.checks import write_rejections
from moe_asr.data.common_voice import read_release, tally
from moe_asr.data.splits import hold_out
from moe_asr.data.tables import Row, write_table
from moe_asr.errors import UserError


@dataclass(frozen=True)
class PrepareConfig:
    """Makes train.tsv, dev.tsv and test.tsv of one language.

    Where Common Voice has no dev.tsv, some speakers of train.tsv become the development set.

    Args:
        corpus: Where the speech comes from.
        corpus_dir: Folder that holds the languages' folders, or for digits those of the collections.
        language: Its code, as in Common Voice: de, zh-CN.
        out_dir: For the tables.
        max_train: Utterances for training at most, chosen by the seed; 0 takes all.
        max_train_of: Another limit for some languages, as {"de": 500}.
        max_dev: The same for development.
        max_test: The same for testing.
        dev_share: Of the training utterances, for development, where there is no list for it.
        seed: Of the choices.
    """

    corpus: Literal["common_voice", "mls", "fleurs", "digits"]
    corpus_dir: str
    language: str
    out_dir: str
    max_train: int = 0
    max_train_of: dict[str, int] = field(default_factory=dict)
    max_dev: int = 0
    max_test: int = 0
    dev_share: float = 0.15
    seed: int = 0


def read_common_voice(config: PrepareConfig) -> dict[str, list[Row]]:
    """Rows by part. What cannot be used is listed in unused-PART.jsonl."""
    folder = Path(config.corpus_dir) / config.language
    if not folder.is_dir():
        raise UserError(f"no language '{config.language}' in {config.corpus_dir}: there is no folder {folder}")
    names = [part for part in ("train", "dev", "test") if part != "dev" or (folder / "dev.tsv").is_file()]
    parts = {}
    for name, found in read_release(folder, names, language=config.language).items():
        parts[name] = found.rows
        if found.rejections:
            path = Path(config.out_dir) / f"unused-{name}.jsonl"
            write_rejections(path, found.rejections)
            print(f"{name}: {len(found.rejections)} lines cannot be used ({tally(found.rejections)}), see {path}")
    if "dev" not in parts:
        parts["train"], parts["dev"] = hold_out(parts["train"], config.dev_share, config.seed)
    return parts


def at_most(limit: int, rows: list[Row], seed: int) -> list[Row]:
    """Some of the rows, in their order; all for 0."""
    if not 0 < limit < len(rows):
        return rows
    kept = set(random.Random(seed).sample(range(len(rows)), limit))
    return [row for number, row in enumerate(rows) if number in kept]


def prepare(config: PrepareConfig) -> None:
    out_dir, corpus_dir = Path(config.out_dir), Path(config.corpus_dir)
    if not corpus_dir.is_dir():
        raise UserError(f"no folder {corpus_dir}: give the one that holds the languages' folders")
    if config.corpus == "common_voice":
        parts = read_common_voice(config)
    elif config.corpus == "digits":
        parts = read_digits(corpus_dir, config.language, out_dir)
    else:
        parts = (read_mls if config.corpus == "mls" else read_fleurs)(corpus_dir, config.language)
    max_train = config.max_train_of.get(config.language, config.max_train)
    limits = {"train": max_train, "dev": config.max_dev, "test": config.max_test}
    for name in limits:
        rows = [replace(row, language=config.language) for row in at_most(limits[name], parts[name], config.seed)]
        if not rows:
            raise UserError(f"language '{config.language}' has no utterance for {name} in {config.corpus_dir}")
        write_table(out_dir / f"{name}.tsv", rows)
        print(f"{config.language} {name}: {len(rows)} utterances of {len({row.speaker for row in rows})} speakers")


if __name__ == "__main__":
    run_command(PrepareConfig, prepare)

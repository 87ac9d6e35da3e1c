"""Makes the tables of the recipe from Common Voice's Mandarin: a general domain, accents, and text for units.

Provinces stand for accents: a province is no dialect, and what a speaker says about home is a noisy label.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from pinyin import read

from moe_asr.config import run_command
from moe_asr.data.checks import write_rejections
from moe_asr.data.common_voice import read_accent_groups, read_release, tally
from moe_asr.data.tables import Row, write_table
from moe_asr.data.text import normalise
from moe_asr.errors import UserError

PARTS = ("train", "dev", "test")


@dataclass(frozen=True)
class PrepareConfig:
    """Makes train_general.tsv, train_accents.tsv, dev_general.tsv, dev_accents.tsv and test.tsv; and train_text.tsv and
    dev_text.tsv, which hold the normalised text of both.

    Utterances for training and development that hold something without a Mandarin reading, such as Latin letters, are
    left out and counted; the test set is as it is.

    Args:
        corpus_dir: The folder zh-CN, with train.tsv, dev.tsv, test.tsv and clips/ in it.
        groups: Table with the columns accent (as the corpus has it) and group.
        out_dir: For the tables, and for lists of what cannot be used.
        general: Name of the general domain.
        general_groups: Groups that make the general domain; each other group is an accent of its own.
        normaliser: Name of the text normaliser for the text of units.
    """

    corpus_dir: str
    groups: str = "conf/accent_groups.tsv"
    out_dir: str = "data"
    general: str = "Northern"
    general_groups: tuple[str, ...] = ("Beijing", "Northeastern", "Ji-Lu", "Zhongyuan", "Lan-Yin")
    normaliser: str = "mandarin"


def read_domains(config: PrepareConfig) -> dict[str, str]:
    """The domain of each accent of the corpus."""
    groups = read_accent_groups(config.groups)
    unknown = [name for name in config.general_groups if name not in groups.values()]
    if unknown:
        raise UserError(f"no accent is of the group {unknown[0]}; groups are {', '.join(sorted(set(groups.values())))}")
    return {accent: config.general if group in config.general_groups else group for accent, group in groups.items()}


def readable(rows: list[Row], normaliser: str) -> list[Row]:
    """Those whose text, which comes back normalised, has a Mandarin reading."""
    rows = [replace(row, text=normalise(normaliser, row.text)) for row in rows]
    return [row for row in rows if read(row.text)]


def prepare(config: PrepareConfig) -> None:
    out_dir = Path(config.out_dir)
    release = read_release(config.corpus_dir, PARTS, read_domains(config), language="zh")
    tables = {}
    for name, found in release.items():
        if found.rejections:
            path = out_dir / f"unused-{name}.jsonl"
            write_rejections(path, found.rejections)
            print(f"{name}: {len(found.rejections)} lines cannot be used ({tally(found.rejections)}), see {path}")
        if name == "test":
            tables["test"] = found.rows
            continue
        text = readable(found.rows, config.normaliser)
        kept = {row.id for row in text}
        if len(kept) < len(found.rows):
            print(f"{name}: {len(found.rows) - len(kept)} utterances left out, because they have no Mandarin reading")
        rows = [row for row in found.rows if row.id in kept]
        tables[f"{name}_text"] = text
        tables[f"{name}_general"] = [row for row in rows if row.accent == config.general]
        tables[f"{name}_accents"] = [row for row in rows if row.accent != config.general]
    for name, rows in tables.items():
        if not rows:
            raise UserError(f"{config.corpus_dir}: nothing is left for {name}.tsv")
        write_table(out_dir / f"{name}.tsv", rows)
        accents = ", ".join(f"{accent} {count}" for accent, count in sorted(Counter(r.accent for r in rows).items()))
        print(f"{name}: {len(rows)} utterances of {len({row.speaker for row in rows})} speakers ({accents})")


if __name__ == "__main__":
    run_command(PrepareConfig, prepare)

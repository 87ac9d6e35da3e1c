"""Makes the tables of the recipe: AISHELL-1 as the general domain, KeSpeech's Mandarin and sub-dialects as accents."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from moe_asr.config import run_command
from moe_asr.data import aishell, kespeech
from moe_asr.data.tables import Row, write_table
from moe_asr.data.text import normalise
from moe_asr.files import atomic_write


@dataclass(frozen=True)
class PrepareConfig:
    """Makes train_general.tsv, train_accents.tsv, dev_general.tsv, dev_accents.tsv, and test.tsv of both corpora.

    Args:
        kespeech: Folder that holds Audio/ and Tasks/.
        aishell: Folder that holds data_aishell/.
        out_dir: For the tables.
        general: What to call the accent of AISHELL-1.
        units: For models that are trained in the run: also makes train_units.tsv and dev_units.tsv, whose texts are
            characters between spaces, and train_pairs.jsonl and dev_pairs.jsonl, with {"source": "[学] [校]", "target":
            "学校"}.
        normaliser: Name of the text normaliser for these.
    """

    kespeech: str
    aishell: str
    out_dir: str = "data"
    general: str = "AISHELL-1"
    units: bool = False
    normaliser: str = "mandarin"


def read_tables(config: PrepareConfig) -> dict[str, list[Row]]:
    general = {part: aishell.read_part(config.aishell, part, config.general) for part in aishell.PARTS}
    accents = {part: kespeech.read_part(config.kespeech, part) for part in kespeech.PARTS}
    return {
        "train_general": general["train"],
        "train_accents": accents["train_phase1"] + accents["train_phase2"],
        "dev_general": general["dev"],
        "dev_accents": accents["dev_phase1"] + accents["dev_phase2"],
        "test": general["test"] + accents["test"],
    }


def write_units(out_dir: Path, name: str, rows: list[Row], normaliser: str) -> None:
    """The table and the pairs of one set; utterances without a text are left out."""
    rows = [replace(row, text=text) for row in rows if (text := normalise(normaliser, row.text).replace(" ", ""))]
    write_table(out_dir / f"{name}_units.tsv", [replace(row, text=" ".join(row.text)) for row in rows])
    with atomic_write(out_dir / f"{name}_pairs.jsonl") as file:
        for row in rows:
            pair = {"source": " ".join(f"[{character}]" for character in row.text), "target": row.text}
            file.write(json.dumps(pair, ensure_ascii=False) + "\n")


def prepare(config: PrepareConfig) -> None:
    out_dir, tables = Path(config.out_dir), read_tables(config)
    for name, rows in tables.items():
        write_table(out_dir / f"{name}.tsv", rows)
        accents = ", ".join(f"{accent} {count}" for accent, count in sorted(Counter(r.accent for r in rows).items()))
        print(f"{name}: {len(rows)} utterances of {len({row.speaker for row in rows})} speakers ({accents})")
    for name in ("train", "dev") if config.units else ():
        rows = tables[f"{name}_general"] + tables[f"{name}_accents"]
        write_units(out_dir, name, rows, config.normaliser)


if __name__ == "__main__":
    run_command(PrepareConfig, prepare)

"""Spoken digits of languages of which a corpus of sentences holds little or nothing: real recordings, freely licensed.

English: strings of the Free Spoken Digit Dataset, as the recipe egs/digits joins them; all three parts have the same
six speakers. Arabic: single digits of thirty speakers of the Arabic Speech Commands Dataset, twenty to train, four for
development, six to test.
"""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

from moe_asr.data.lines import read_lines
from moe_asr.data.tables import Row, read_table
from moe_asr.errors import UserError

ARABIC = "https://github.com/abdulkaderghandoura/arabic-speech-commands-dataset"
ARABIC_DIGITS = "صفر واحد اثنان ثلاثة أربعة خمسة ستة سبعة ثمانية تسعة".split()
_SPEAKERS = {"train": 20, "dev": 4, "test": 6}
_STRINGS = {"general_train": 120, "accent_train": 60, "dev": 10, "test": 30}


def read_digits(folder: Path, language: str, out_dir: Path) -> dict[str, list[Row]]:
    """Rows of the parts train, dev and test.

    Args:
        folder: Holds free_spoken_digit_dataset/ and arabic_digits/.
        language: en or ar.
        out_dir: For English, whose strings are made there.

    Raises:
        UserError: there are no digits in this language, or the recordings are not there.
    """
    readers = {"en": _english, "ar": _arabic}
    if language not in readers:
        raise UserError(f"there are spoken digits in {' and '.join(sorted(readers))}, not in '{language}'")
    return readers[language](folder, out_dir)


def _english(folder: Path, out_dir: Path) -> dict[str, list[Row]]:
    recipe = Path(__file__).resolve().parents[3] / "digits/asr1/local/prepare.py"
    strings = out_dir / "strings"
    counts = [word for name, count in _STRINGS.items() for word in (f"--{name}", str(count))]
    places = ["--corpus_dir", str(folder), "--out_dir", str(strings)]
    if subprocess.run([sys.executable, str(recipe), *places, *counts], stdout=subprocess.DEVNULL).returncode:
        raise UserError(f"no English digits from {folder}, see above")
    names = {"train": ("train_general", "train_accents"), "dev": ("dev_general", "dev_accents"), "test": ("test",)}
    return {
        part: [r for table in tables for r in read_table(strings / f"{table}.tsv")] for part, tables in names.items()
    }


def _arabic(folder: Path, out_dir: Path) -> dict[str, list[Row]]:
    table = folder / "arabic_digits" / "metadata.tsv"
    if not table.is_file():
        raise UserError(f"no {table}: get {ARABIC}, keep the digits, and list them as path, speaker, digit")
    rows = []
    for number, line in enumerate(read_lines(table), 1):
        fields = line.split("\t")
        if number == 1 and fields == ["path", "speaker", "digit"]:
            continue
        if len(fields) != 3 or fields[2] not in list("0123456789"):
            raise UserError(f"{table}:{number}: expected a path, a speaker and a digit, not '{line}'")
        path, speaker, digit = fields
        name = f"ar-{Path(path).stem}-{digit}"
        audio = str((table.parent / path).absolute())
        rows.append(Row(name, audio, ARABIC_DIGITS[int(digit)], speaker=speaker, language="ar"))
    speakers = sorted({row.speaker for row in rows})
    if len(speakers) < sum(_SPEAKERS.values()):
        raise UserError(f"{table} lists {len(speakers)} speakers; {sum(_SPEAKERS.values())} are needed")
    random.Random("ar").shuffle(speakers)
    parts, begin = {}, 0
    for part, count in _SPEAKERS.items():
        chosen = set(speakers[begin : begin + count])
        parts[part], begin = [row for row in rows if row.speaker in chosen], begin + count
    return parts

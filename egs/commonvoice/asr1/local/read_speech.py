"""Multilingual LibriSpeech (OpenSLR 94) and FLEURS, read as lhotse reads them, by codes of languages."""

from __future__ import annotations

from pathlib import Path

from moe_asr.data.lines import read_lines
from moe_asr.data.tables import Row
from moe_asr.errors import UserError

PARTS = ("train", "dev", "test")
MLS = dict(
    de="german", en="english", es="spanish", fr="french", it="italian", nl="dutch", pl="polish", pt="portuguese"
)  # fmt: skip
_FLEURS = {"zh": "cmn_hans_cn", "zh-CN": "cmn_hans_cn", "yue": "yue_hant_hk"}


def read_mls(folder: Path, language: str) -> dict[str, list[Row]]:
    """Rows by part of mls_german/ or mls_german_opus/: transcripts.txt, and audio/SPEAKER/BOOK/ID.flac or .opus.

    Raises:
        UserError: the language or a file is not there, or a line is no transcript
    """
    if language not in MLS:
        raise UserError(f"MLS has no language '{language}'; it has {', '.join(MLS)}")
    names = [f"mls_{MLS[language]}", f"mls_{MLS[language]}_opus"]
    corpus = next((folder / name for name in names if (folder / name).is_dir()), None)
    if corpus is None:
        raise UserError(
            f"no {' or '.join(names)} in {folder}: get it from https://www.openslr.org/94 and unpack it there"
        )
    parts = {}
    for part in PARTS:
        rows = parts[part] = []
        for number, line in _lines(corpus / part / "transcripts.txt"):
            name, tab, text = line.partition("\t")
            place = name.split("_")
            if not tab or len(place) != 3:
                raise UserError(
                    f"{corpus / part}/transcripts.txt:{number}: expected SPEAKER_BOOK_NUMBER and a text, not '{line}'"
                )
            found = [corpus / part / "audio" / place[0] / place[1] / f"{name}.{kind}" for kind in ("flac", "opus")]
            audio = str(next((path for path in found if path.is_file()), found[0]).absolute())
            rows.append(Row(name, audio, text, speaker=place[0], language=language, line=number))
    return parts


def read_fleurs(folder: Path, language: str) -> dict[str, list[Row]]:
    """Rows by part of what lhotse downloads: metadata/de_de/train.tsv, and de_de/train/FILE.wav.

    Speakers are not known: each recording of a sentence counts as one, as in lhotse.

    Raises:
        UserError: the language or a file is not there, or a line is not as expected
    """
    lists = folder / "metadata"
    if not lists.is_dir():
        raise UserError(f"no {lists}: get FLEURS with lhotse download fleurs, and give its folder")
    known = sorted(path.name for path in lists.iterdir())
    names = [_FLEURS.get(language, language), *(name for name in known if name.split("_")[0] == language)]
    name = next((name for name in names if name in known), None)
    if name is None:
        raise UserError(f"no language '{language}' in {lists}; there are {', '.join(known) or 'none'}")
    parts = {}
    for part in PARTS:
        rows, times = [], {}
        for number, line in _lines(lists / name / f"{part}.tsv"):
            fields = line.split("\t")
            if len(fields) != 7:
                raise UserError(f"{lists / name / part}.tsv:{number}: expected 7 fields, not {len(fields)}")
            sentence, file, _, text, *_ = fields
            times[sentence] = times.get(sentence, 0) + 1
            speaker, stem = f"{sentence}_{times[sentence]}", Path(file).stem
            audio = str((folder / name / part / f"{stem}.wav").absolute())
            rows.append(Row(f"{speaker}_{stem}", audio, text, speaker=speaker, language=language, line=number))
        parts[part] = rows
    return parts


def _lines(path: Path):
    if not path.is_file():
        raise UserError(f"no {path}: unpack the corpus again")
    return ((number, line) for number, line in enumerate(read_lines(path), 1) if line.strip())

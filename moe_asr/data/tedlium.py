"""Reads TED-LIUM 3: talks as `.sph` with `.stm` beside, in `legacy/` as in release 2, and in `speaker-adaptation/`.

A talk is a speaker. Its segments are parts of one recording; what is between them, and segments that scoring ignores,
are left out.
"""

from __future__ import annotations

import re
from pathlib import Path

from moe_asr.data.lines import parse_number, read_lines
from moe_asr.data.tables import Row
from moe_asr.errors import UserError

ADVICE = "get it from https://www.openslr.org/51 and give the folder that holds TEDLIUM_release-3/ as --corpus_dir"
# where the transcript of a talk may lie; the distributions share recordings by links, on some systems as copies
_FOLDERS = ("speaker-adaptation", "speaker-adaptation/*", "speaker-adaptation/*/*", "data/stm", "legacy/*/stm")
_IGNORED_TEXT = "ignore_time_segment_in_scoring"
_IGNORED_SPEAKER = "inter_segment_gap"
# <unk>, <sil> and the like; {NOISE}, {COUGH}; [laughter]; the number of a pronunciation, as in "the(2)"
_MARKS = re.compile(r"<[^>]*>|\{[^}]*\}|\[[^\]]*\]|\(\d+\)")
_SUFFIX = re.compile(r" '(s|t|m|d|re|ve|ll)\b", re.IGNORECASE)  # "it 's" is one word elsewhere


def find_talks(corpus: str | Path, part: str) -> list[Path]:
    """The `.stm` files of a part of the legacy distribution: train, dev or test.

    Raises:
        UserError: there are none.
    """
    folder = Path(corpus) / "legacy" / part / "stm"
    found = sorted(folder.glob("*.stm"))
    if not found:
        raise UserError(f"no .stm file in {folder}: {ADVICE}")
    return found


def find_talk(corpus: str | Path, talk: str) -> Path:
    """The `.stm` file of one talk, from the speaker-adaptation distribution or else from anywhere in the corpus.

    Raises:
        UserError: there is no such talk.
    """
    corpus = Path(corpus)
    for folder in _FOLDERS:
        for path in sorted(corpus.glob(f"{folder}/{talk}.stm")):
            return path
    raise UserError(f"no talk {talk}.stm in {corpus / 'speaker-adaptation'} and none in data/ and legacy/: {ADVICE}")


def read_talk(stm: str | Path) -> list[Row]:
    """One row for each segment of a talk, by its beginning: `talk channel speaker begin end <label> text`.

    Raises:
        UserError: a line is not one of STM or not UTF-8, or no segment is left.
    """
    stm = Path(stm)
    audio, rows = str(_find_audio(stm).absolute()), []
    for number, line in enumerate(read_lines(stm), 1):
        if not line.strip() or line.startswith(";;"):
            continue
        fields = line.split(None, 6)
        try:
            begin, end = parse_number(fields[3]), parse_number(fields[4])
            if not 0 <= begin < end:
                raise ValueError
        except (ValueError, IndexError):
            expected = "talk channel speaker begin end <label> text"
            raise UserError(f"{stm}:{number}: expected '{expected}', begin before end, not '{line}'") from None
        text = fields[6] if len(fields) > 6 else ""
        if fields[2] == _IGNORED_SPEAKER or text.strip() == _IGNORED_TEXT:
            continue
        name = f"{stm.stem}-{round(begin * 100):07d}-{round(end * 100):07d}"
        place = {"start": f"{begin:.2f}", "duration": f"{end - begin:.2f}"}
        rows.append(Row(name, audio, clean(text), speaker=stm.stem, language="en", **place))
    if not rows:
        raise UserError(f"{stm} has no segment that scoring does not ignore")
    return sorted(rows, key=lambda row: float(row.start))


def clean(text: str) -> str:
    """The words alone: without marks of noise and of unknown words, and with suffixes joined to their words."""
    return _SUFFIX.sub(r"'\1", " ".join(_MARKS.sub(" ", text).split()))


def person(talk: str) -> str:
    """Who talks: `MarcGoodman` of `MarcGoodman_2012G`."""
    return talk.partition("_")[0]


def _find_audio(stm: Path) -> Path:
    """The recording of a talk: `sph/` beside `stm/`, in the same folder, or in `data/sph/` of the corpus."""
    places = [stm.parent.parent / "sph", stm.parent, *(folder / "data" / "sph" for folder in stm.absolute().parents)]
    candidates = [place / f"{stm.stem}.sph" for place in places]
    return next((path for path in candidates if path.is_file()), candidates[0])

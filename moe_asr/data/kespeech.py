"""Reads KeSpeech: Mandarin and eight sub-dialects, lists in Kaldi's format in `Tasks/ASR/<part>/`, speech in `Audio/`.

lhotse's preparation stops at the first empty transcript or unreadable recording. Here an utterance with an empty
transcript is a row like any other, which the checks of `bin/prepare` reject and list with the reason, as they do with
recordings; what else there is is the same.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from moe_asr.data.kaldi_folder import read_kaldi_folder, read_map
from moe_asr.data.tables import Row
from moe_asr.errors import UserError

ADVICE = (
    "apply for KeSpeech as https://github.com/KeSpeech/KeSpeech says, accept its licence,"
    " and give the folder that holds Audio/ and Tasks/"
)
PARTS = ("train_phase1", "train_phase2", "dev_phase1", "dev_phase2", "test")
STANDARD = "Mandarin"
SUBDIALECTS = (
    "Beijing",
    "Ji-Lu",
    "Jiang-Huai",
    "Jiao-Liao",
    "Lan-Yin",
    "Northeastern",
    "Southwestern",
    "Zhongyuan",
)


def read_part(corpus: str | Path, part: str) -> list[Row]:
    """One row for each transcript, in the order of the list; the accent is the sub-dialect, or `STANDARD`.

    Args:
        corpus: The folder that holds `Audio/` and `Tasks/`.
        part: One of `PARTS`.

    Raises:
        UserError: the part or one of its lists is missing, an utterance has no recording, speaker or sub-dialect, or
            there is none.
    """
    folder = Path(corpus) / "Tasks" / "ASR" / part
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: {ADVICE}")
    subdialects = read_map(folder / "utt2subdialect")
    rows = []
    for row in read_kaldi_folder(folder, corpus):
        if not subdialects.get(row.id):
            raise UserError(f"{folder / 'utt2subdialect'}: nothing for utterance {row.id}, which {folder / 'text'} has")
        text = " ".join(row.text.replace("<SPOKEN_NOISE>", " ").split())
        rows.append(replace(row, text=text, accent=subdialects[row.id], language="zh"))
    if not rows:
        raise UserError(f"{folder / 'text'} is empty: {ADVICE}")
    return rows

"""Reads AISHELL-1 as it is unpacked: `data_aishell/wav/train/S0002/BAC009S0002W0122.wav`, one list of transcripts.

lhotse's preparation reads all parts at once and stops at the first unreadable recording; this reads one part, and
leaves recordings to the checks of `bin/prepare`, which list what they reject.
"""

from __future__ import annotations

from pathlib import Path

from moe_asr.data.kaldi_folder import read_map
from moe_asr.data.tables import Row
from moe_asr.errors import UserError

ADVICE = "get it from https://www.openslr.org/33 and give the folder that holds data_aishell/"
PARTS = ("train", "dev", "test")
_TRANSCRIPTS = Path("data_aishell", "transcript", "aishell_transcript_v0.8.txt")


def read_part(corpus: str | Path, part: str, accent: str = "Mandarin") -> list[Row]:
    """One row for each recording, by speaker and name; those without a transcript (some hundred) have an empty text.

    Args:
        corpus: The folder that holds `data_aishell/`.
        part: One of `PARTS`.
        accent: What to call the accent of all of them.

    Raises:
        UserError: the part or the transcripts are missing, the speakers' archives are not unpacked, or no recording of
            the part has a transcript.
    """
    folder = Path(corpus) / "data_aishell" / "wav" / part
    path = Path(corpus) / _TRANSCRIPTS
    if not path.is_file():
        raise UserError(f"no {path}: {ADVICE}")
    recordings = sorted(folder.glob("*/*.wav"))
    if not recordings and any(folder.parent.glob("*.tar.gz")):
        raise UserError(f"no recordings in {folder}, but archives beside it: unpack all {folder.parent}/*.tar.gz there")
    if not recordings:
        raise UserError(f"no recordings such as {folder / 'S0002' / 'BAC009S0002W0122.wav'}: {ADVICE}")
    texts = read_map(path)
    rows = [
        Row(audio.stem, str(audio.absolute()), texts.get(audio.stem, ""), audio.parent.name, accent, "zh")
        for audio in recordings
    ]
    if not any(row.text for row in rows):
        raise UserError(f"{path} has no transcript of a recording in {folder}: are they of the same corpus?")
    return rows

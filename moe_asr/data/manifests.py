"""Manifests: which utterances there are, kept in lhotse's MonoCut JSON lines.

The files load with `lhotse.CutSet.from_file`. They are read and written here without lhotse, because importing it also
imports torch, and data-preparation commands should start at once.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from moe_asr.errors import UserError
from moe_asr.files import atomic_write

_CUSTOM = ("accent", "raw_text", "audio_crc32")  # fields that lhotse has no place of its own for


@dataclass(frozen=True)
class Utterance:
    """One stretch of speech by one speaker, with its transcript.

    Args:
        id: Unique name within a manifest.
        audio: Path of the recording; mono.
        num_samples: Length of the whole recording.
        sample_rate: Of the recording, in Hz.
        text: Normalised transcript.
        speaker: Name of the speaker; empty if unknown.
        accent: Name of the accent; empty if unknown.
        language: Language code; empty if unknown.
        start: Where the utterance begins in the recording, in seconds.
        duration: Length in seconds; None stands for everything after `start`.
        raw_text: Transcript as published; empty if it is the same.
        audio_crc32: Of the recording's samples as float32, so that a manifest changes with its audio; empty if unknown.
    """

    id: str
    audio: str
    num_samples: int
    sample_rate: int
    text: str
    speaker: str = ""
    accent: str = ""
    language: str = ""
    start: float = 0.0
    duration: float | None = None
    raw_text: str = ""
    audio_crc32: str = ""

    @property
    def seconds(self) -> float:
        """Duration in seconds, also where `duration` is None."""
        if self.duration is not None:
            return self.duration
        return self.num_samples / self.sample_rate - self.start


def write_manifest(path: str | Path, utterances: Iterable[Utterance]) -> None:
    """Writes JSON lines, atomically; gzipped if `path` ends in `.gz`, and then the same bytes for the same content."""
    if str(path).endswith(".gz"):
        # no file name and no time in the gzip header, so that equal manifests are equal files
        with atomic_write(path, "wb") as raw, gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as file:
            for utterance in utterances:
                file.write((json.dumps(_to_cut(utterance), ensure_ascii=False) + "\n").encode())
    else:
        with atomic_write(path) as file:
            for utterance in utterances:
                file.write(json.dumps(_to_cut(utterance), ensure_ascii=False) + "\n")


def read_manifest(path: str | Path) -> list[Utterance]:
    """Reads what `write_manifest` wrote, or MonoCuts with one supervision each from elsewhere.

    Raises:
        UserError: the file is missing, or a line of it is not such a cut.
    """
    if not Path(path).is_file():
        raise UserError(f"no manifest at {path}: prepare the data first (python -m moe_asr.bin.prepare --help)")
    utterances = []
    try:
        with _open(path) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    utterances.append(_from_cut(line, f"{path}, line {number}"))
    except (EOFError, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise UserError(f"{path}: damaged manifest, prepare the data again ({error})") from None
    return utterances


def read_manifests(paths: Sequence[str]) -> list[Utterance]:
    """All utterances of some manifests.

    Raises:
        UserError: there are none, or an id occurs twice.
    """
    if not paths:
        raise UserError("no manifests given")
    utterances = [utterance for path in paths for utterance in read_manifest(path)]
    if not utterances:
        raise UserError(f"no utterances in {', '.join(paths)}")
    seen: set[str] = set()
    for utterance in utterances:
        if utterance.id in seen:
            raise UserError(f"id {utterance.id} occurs twice in {', '.join(paths)}")
        seen.add(utterance.id)
    return utterances


def domain_names(utterances: Iterable[Utterance], key: str) -> list[str]:
    """The sorted distinct values of one field, which number the domains.

    Args:
        utterances: Those to train on.
        key: `accent`, `speaker` or `language`.

    Raises:
        UserError: some utterance has no such label.
    """
    labels = [getattr(utterance, key) for utterance in utterances]
    missing = labels.count("")
    if missing:
        raise UserError(f"{missing} of {len(labels)} utterances have no {key}; add the column '{key}' to their table")
    return sorted(set(labels))


def _open(path: str | Path) -> IO[str]:
    if str(path).endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8")
    return open(path, encoding="utf-8")


def _to_cut(utterance: Utterance) -> dict:
    recording_seconds = utterance.num_samples / utterance.sample_rate
    supervision = {
        "id": utterance.id,
        "recording_id": utterance.id,
        "start": 0.0,
        "duration": utterance.seconds,
        "channel": 0,
        "text": utterance.text,
    }
    supervision |= {key: value for key in ("language", "speaker") if (value := getattr(utterance, key))}
    if custom := {key: value for key in _CUSTOM if (value := getattr(utterance, key))}:
        supervision["custom"] = custom
    return {
        "id": utterance.id,
        "start": utterance.start,
        "duration": utterance.seconds,
        "channel": 0,
        "supervisions": [supervision],
        "recording": {
            "id": utterance.id,
            "sources": [{"type": "file", "channels": [0], "source": utterance.audio}],
            "sampling_rate": utterance.sample_rate,
            "num_samples": utterance.num_samples,
            "duration": recording_seconds,
            "channel_ids": [0],
        },
        "type": "MonoCut",
    }


def _from_cut(line: str, where: str) -> Utterance:
    try:
        cut = json.loads(line)
        if cut["type"] != "MonoCut":
            raise UserError(f"{where}: a {cut['type']}, but only MonoCuts are read")
        if len(cut["supervisions"]) != 1:
            raise UserError(
                f"{where}: {len(cut['supervisions'])} supervisions, expected one; trim cuts to supervisions"
            )
        supervision, recording = cut["supervisions"][0], cut["recording"]
        if len(recording["sources"]) != 1 or recording["sources"][0]["type"] != "file" or recording.get("transforms"):
            raise UserError(f"{where}: expected a recording that is one plain audio file, without transforms")
        whole = cut["start"] == 0 and cut["duration"] == recording["duration"]
        return Utterance(
            id=cut["id"],
            audio=recording["sources"][0]["source"],
            num_samples=recording["num_samples"],
            sample_rate=recording["sampling_rate"],
            text=supervision.get("text") or "",
            speaker=supervision.get("speaker") or "",
            language=supervision.get("language") or "",
            start=cut["start"],
            duration=None if whole else cut["duration"],
            **{key: (supervision.get("custom") or {}).get(key) or "" for key in _CUSTOM},
        )
    except (json.JSONDecodeError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{where}: not a lhotse cut ({type(error).__name__}: {error})") from None


def summary(utterances: Sequence[Utterance]) -> str:
    """As `480 utterances, 0.31 h, 30 speakers, 5 accents`."""
    parts = [f"{len(utterances)} utterances", f"{sum(u.seconds for u in utterances) / 3600:.2f} h"]
    for key in ("speaker", "accent", "language"):
        count = len({getattr(u, key) for u in utterances} - {""})
        if count:
            parts.append(f"{count} {key}{'s' * (count > 1)}")
    return ", ".join(parts)

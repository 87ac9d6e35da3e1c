"""Manifests: which utterances there are, kept in lhotse's MonoCut JSON lines.

The files load with `lhotse.CutSet.from_file`. They are read and written here without lhotse, because importing it also
imports torch, and data-preparation commands should start at once.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_asr.data.lines import read_lines
from moe_asr.errors import UserError
from moe_asr.files import atomic_write
from moe_asr.strict_json import parse_json

_TRIMMED = 0.1  # seconds by which a text and its cut may differ
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
    return [
        _from_cut(line, f"{path}, line {number}") for number, line in enumerate(read_lines(path), 1) if line.strip()
    ]


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
        cut = parse_json(line)
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
        utterance = Utterance(
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
        times = cut["start"], cut["duration"], supervision["start"], supervision["duration"], recording["duration"]
        if problem := _problem(utterance, *times):
            raise UserError(f"{where}: {problem}; prepare the data again")
        return utterance
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError) as error:
        raise UserError(f"{where}: not a lhotse cut ({type(error).__name__}: {error})") from None


def _problem(utterance: Utterance, start: float, duration: float, begin: float, length: float, recorded: float) -> str:
    """What is wrong with a cut of such a recording, with a supervision of `length` seconds at its second `begin`."""
    texts = {name: getattr(utterance, name) for name in ("id", "audio", "text", "speaker", "language", *_CUSTOM)}
    wrong = next((name for name, value in texts.items() if not isinstance(value, str)), None)
    if wrong:
        return f"{wrong} is {texts[wrong]!r}, not a text"
    if not utterance.id or not utterance.id.isprintable() or not utterance.audio:
        return f"id {utterance.id!r} is empty or cannot be printed, or there is no audio"
    samples, rate = utterance.num_samples, utterance.sample_rate
    if type(samples) is not int or type(rate) is not int or not 0 < samples < 1 << 48 or not 0 < rate < 1 << 24:
        return f"{samples!r} samples at {rate!r} Hz are no recording"
    for value in (start, duration, begin, length, recorded):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return f"{value!r} is no number of seconds"
    if abs(recorded * rate - samples) > 1:
        return f"the recording has {samples} samples, which are not {recorded:g} s at {rate} Hz"
    # as `load_audio` reads it
    first, count = round(start * rate), round(utterance.seconds * rate)
    if start < 0 or count < 1 or first + count > samples:
        return f"{start:g} s to {start + duration:g} s is nothing within a recording of {recorded:g} s"
    if abs(begin) > _TRIMMED or abs(length - duration) > _TRIMMED:
        return f"the text is of second {begin:g} to {begin + length:g} of {duration:g}: trim cuts to supervisions"
    return ""


def summary(utterances: Sequence[Utterance]) -> str:
    """As `480 utterances, 0.31 h, 30 speakers, 5 accents`."""
    parts = [f"{len(utterances)} utterances", f"{sum(u.seconds for u in utterances) / 3600:.2f} h"]
    for key in ("speaker", "accent", "language"):
        count = len({getattr(u, key) for u in utterances} - {""})
        if count:
            parts.append(f"{count} {key}{'s' * (count > 1)}")
    return ", ".join(parts)

"""Reads an audio file to its end and says what is wrong with it, if anything."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import numpy as np

from moe_asr.data.audio import LOUDEST, mono_blocks, open_audio, why

_BLOCK = 1 << 16  # samples read at a time
_UNKNOWN_SIZE = (0, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)  # what programs write which do not know the length yet


@dataclass(frozen=True)
class AudioFacts:
    """What a file holds, `crc32` of its samples; `problem` is one of a few kinds of fault, empty for a sound file."""

    num_samples: int = 0
    sample_rate: int = 0
    problem: str = ""
    detail: str = ""
    crc32: str = ""


def probe(path: str) -> AudioFacts:
    """Reads the whole file. Faults: unreadable or truncated, no samples, not mono, not finite, out of range, silent."""
    try:
        missing = missing_bytes(path)
        if missing:
            return AudioFacts(problem="truncated audio", detail=missing)
        peak, num_samples, crc32 = 0.0, 0, 0
        with open_audio(path) as file:
            declared, rate, channels = file.frames, file.samplerate, file.channels
            if channels != 1:
                return AudioFacts(problem="not mono", detail=f"{channels} channels")
            for block in mono_blocks(file, _BLOCK):
                num_samples += len(block)
                crc32 = zlib.crc32(np.ascontiguousarray(block), crc32)
                # max and min let NaN through, so that it shows in the peak
                peak = np.maximum(peak, max(np.max(block, initial=0.0), -np.min(block, initial=0.0)))
                if not np.isfinite(block).all():
                    return AudioFacts(problem="audio not finite", detail=f"NaN or infinite before sample {num_samples}")
    except FileNotFoundError:
        return AudioFacts(problem="no such audio file")
    except (OSError, RuntimeError, ValueError) as error:
        return AudioFacts(problem="unreadable audio", detail=why(error))
    if num_samples < declared:
        return AudioFacts(problem="truncated audio", detail=f"{num_samples} of {declared} samples")
    if num_samples == 0:
        return AudioFacts(problem="no samples")
    if peak > LOUDEST:
        return AudioFacts(problem="audio out of range", detail=f"samples up to {peak:.3g}, where full scale is 1")
    if peak == 0.0:
        return AudioFacts(problem="silent", detail="all samples are zero")
    return AudioFacts(num_samples, rate, crc32=f"{crc32:08x}")


def missing_bytes(path: str) -> str:
    """What a WAV, SPHERE or Ogg file lacks at its end; libsndfile reads such files as if they were whole.

    Other formats tell by themselves, or not at all (MP3).
    """
    try:
        with open(path, "rb") as file:
            magic = file.read(4)
            if magic == b"RIFF":
                return _missing_of_wav(file)
            if magic == b"NIST":
                return _missing_of_sphere(file)
            if magic == b"OggS":
                return _missing_of_ogg(file)
    except (FileNotFoundError, struct.error):  # told better by libsndfile
        pass
    return ""


def _missing_of_wav(file) -> str:
    size = file.seek(0, 2)
    place = 12
    while place + 8 <= size:
        file.seek(place)
        name, length = struct.unpack("<4sI", file.read(8))
        if name == b"data":
            held = size - place - 8
            return f"{held} of {length} bytes of samples" if held < length and length not in _UNKNOWN_SIZE else ""
        place += 8 + length + length % 2
    return "" if size < 12 else "no samples after the header"


def _missing_of_sphere(file) -> str:
    """The header is text: its own length in the second line, then lines `name -type value` (NIST SPHERE)."""
    size = file.seek(0, 2)
    file.seek(0)
    lines = file.read(1024).decode("ascii", errors="replace").split("\n")
    facts = {words[0]: words[2] for line in lines[2:] if len(words := line.split()) == 3}
    names = ("sample_count", "sample_n_bytes", "channel_count")
    numbers = [lines[1].strip() if len(lines) > 1 else "", *(facts.get(name, "1") for name in names)]
    if facts.get("sample_coding", "pcm") != "pcm" or not all(number.isdecimal() for number in numbers):
        return ""  # compressed, or no such header: told by libsndfile
    header, samples, sample_bytes, channels = map(int, numbers)
    held, length = max(0, size - header), samples * sample_bytes * channels
    return f"{held} of {length} bytes of samples" if held < length else ""


def _missing_of_ogg(file) -> str:
    """The last page of an Ogg stream carries a flag, and its length is in its header (RFC 3533)."""
    size = file.seek(0, 2)
    tail_size = min(size, 2 * 65307)  # the largest page has 65307 bytes
    file.seek(size - tail_size)
    tail = file.read()
    place = tail.rfind(b"OggS")
    page = tail[place:]
    if len(page) < 27 or len(page) < 27 + page[26] or len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]]):
        return "the last Ogg page is cut"
    return "" if page[5] & 4 else "the Ogg stream has no last page"

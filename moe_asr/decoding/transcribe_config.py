"""What `transcribe` is told; apart from what does it, so that `--help` need not import torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Optional

from moe_asr.data.segments import SegmentConfig
from moe_asr.decoding.search_config import SearchConfig
from moe_asr.decoding.transcripts import read_formats
from moe_asr.errors import UserError


@dataclass(frozen=True)
class TranscribeConfig:
    """Writes down what is said in audio files of any length, sample rate and number of channels.

    Args:
        model: model folder
        files: audio files (wav, flac, mp3, ogg, opus), and folders of them
        adaptation: folder of experts trained on this model
        language: language of all the speech, as in de, for models that know several; without it, or with detect, they
            find out for each piece
        accent: accent of all the speech, for experts whose routers see the accent; otherwise they find out as they did
            in training
        format: text, json or srt, or several of them as in text,srt
        out_dir: folder for the transcripts, a file for each recording and format; without it they are printed, json
            one line for each recording
        overwrite: make transcripts anew that are in out_dir already; otherwise they are left alone
        max_seconds: longest piece that the model is given, 20 s if it can hear and write as much; recordings are
            cut at silences and, where there is none for so long, at their quietest point
        segments: what counts as silence
        search: how texts are found
        precision: fp32, or bf16 for the products inside the model
        max_duration: of a batch of pieces, in seconds, padding included
        device: cpu, cuda, ...; auto takes a GPU if there is one
    """

    model: str
    files: list[str] = field(default_factory=list, metadata={"positional": True})
    adaptation: Optional[str] = None
    language: Optional[str] = None
    accent: Optional[str] = None
    format: str = "text"
    out_dir: Optional[str] = None
    overwrite: bool = False
    max_seconds: Optional[float] = None
    segments: SegmentConfig = field(default_factory=SegmentConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    precision: Literal["fp32", "bf16"] = "fp32"
    max_duration: float = 120.0
    device: str = "auto"

    def __post_init__(self):
        if not self.files:
            raise UserError("nothing to transcribe: name audio files or folders")
        if self.out_dir is None and len(read_formats(self.format)) > 1:
            raise UserError(f"format {self.format}: several formats need --out_dir")
        if self.max_seconds is not None and not self.max_seconds >= 1:
            raise UserError(f"max_seconds must be at least 1, not {self.max_seconds}")

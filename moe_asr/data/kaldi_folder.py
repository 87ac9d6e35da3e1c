"""Reads a Kaldi data folder: `text`, `wav.scp`, `utt2spk`, and maps from speakers such as `spk2gender`.

Each line of such a file is a name, white space, and the rest. Pipes in `wav.scp` and `segments` are not read.
"""

from __future__ import annotations

from pathlib import Path

from moe_asr.data.lines import read_lines
from moe_asr.data.tables import Row
from moe_asr.errors import UserError


def read_kaldi_folder(folder: str | Path, audio_root: str | Path) -> list[Row]:
    """One row for each line of `text`, in its order.

    Args:
        audio_root: What relative paths in `wav.scp` are relative to.

    Raises:
        UserError: a file is missing or is not such a file, an utterance has no audio or no speaker, or a recording is
            a command.
    """
    folder = Path(folder)
    texts, audio, speakers = (read_map(folder / name) for name in ("text", "wav.scp", "utt2spk"))
    rows = []
    for name, text in texts.items():
        for file, values in (("wav.scp", audio), ("utt2spk", speakers)):
            if not values.get(name):
                raise UserError(f"{folder / file}: nothing for utterance {name}, which {folder / 'text'} has")
        if audio[name].endswith("|"):
            raise UserError(f"{folder / 'wav.scp'}: {name} is a command; only files are read")
        path = (Path(audio_root) / audio[name]).absolute()
        rows.append(Row(name, str(path), " ".join(text.split()), speaker=speakers[name]))
    return rows


def read_map(path: str | Path) -> dict[str, str]:
    """The lines `name rest` of a file; `rest` may be empty.

    Raises:
        UserError: the file is missing, not UTF-8, or has a name twice.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no file {path}: expected a Kaldi data folder with text, wav.scp and utt2spk")
    values: dict[str, str] = {}
    for number, line in enumerate(read_lines(path), 1):
        if line.strip():
            name, *rest = line.split(None, 1)
            if name in values:
                raise UserError(f"{path}:{number}: {name} is there twice")
            values[name] = rest[0].strip() if rest else ""
    return values

"""Decode results on disk, batch by batch, so that a decode that was stopped goes on where it stopped.

A decode folder holds `decode.json` (the settings that made it), `hyps.jsonl` (one utterance a line) and, once all
utterances are there, `system.json`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moe_asr.errors import SettingsChanged, UserError
from moe_asr.files import atomic_write, lock_folder
from moe_asr.scoring.hypotheses import HYPOTHESES, SYSTEM
from moe_asr.strict_json import parse_json

SETTINGS = "decode.json"


class HypothesisStream:
    """Writes the hypotheses of a decode; what an earlier, interrupted decode has written is kept.

        with HypothesisStream(out_dir, settings, ids) as stream:
            for batch in batches:  # cut in the same way in every run, so that results are the same bit for bit
                if stream.missing(batch.ids):
                    stream.write(decode(batch))
            stream.finish(system)

    Args:
        out_dir: the decode folder, made if it is missing.
        settings: all that decides the hypotheses (identities of model, adapter and manifest, search), fit for JSON.
        ids: all utterances, in the order in which `hyps.jsonl` will have them at the end.
        restart: throws away what an earlier decode with any settings has left.

    Raises:
        UserError: the folder holds a decode with other settings, or a damaged one, or another process decodes into it.
    """

    def __init__(self, out_dir: str | Path, settings: Mapping[str, Any], ids: Sequence[str], restart: bool = False):
        self.folder = Path(out_dir)
        self._path = self.folder / HYPOTHESES
        self._order = {name: number for number, name in enumerate(ids)}
        assert len(self._order) == len(ids), "utterance ids are unique in a manifest"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = lock_folder(self.folder, "decoding into")
        try:
            if restart:
                for name in (SYSTEM, HYPOTHESES, SETTINGS):  # in this order no part of it ever looks complete
                    (self.folder / name).unlink(missing_ok=True)
            self._check_settings(json.loads(json.dumps(settings)))
            self._done = self._read()
            self._file = open(self._path, "ab")  # noqa: SIM115, closed by close()
        except BaseException:
            os.close(self._lock)
            raise

    @property
    def complete(self) -> bool:
        """Whether all has been decoded and `finish` has been called, now or in an earlier run."""
        return (self.folder / SYSTEM).is_file()

    def missing(self, ids: Sequence[str]) -> list[str]:
        """Those of `ids` that have no hypothesis yet."""
        return [name for name in ids if name not in self._done]

    def write(self, hypotheses: Sequence[Mapping[str, Any]]) -> None:
        """Appends hypotheses (`id`, `ref`, `hyp`, ...) but for known ones, and waits until they are on the disk."""
        lines = b""
        for hypothesis in hypotheses:
            name = hypothesis["id"]
            assert name in self._order, f"{name} is not an utterance of this decode"
            if name not in self._done:
                self._done[name] = _line(hypothesis)
                lines += self._done[name]
        self._file.write(lines)
        self._file.flush()
        os.fsync(self._file.fileno())

    def count(self, key: str) -> int:
        """Hypotheses, of this and of earlier runs, of which `key` is true."""
        return sum(bool(json.loads(line).get(key)) for line in self._done.values())

    def finish(self, system: Mapping[str, Any]) -> None:
        """Puts the lines into the order of the manifest, then writes `system.json`, whose presence means complete."""
        missing = self.missing(list(self._order))
        assert not missing, f"{len(missing)} utterances have not been decoded, the first is {missing[0]}"
        with atomic_write(self._path, "wb") as file:
            file.writelines(self._done[name] for name in self._order)
        with atomic_write(self.folder / SYSTEM) as file:
            file.write(json.dumps(dict(system), indent=2, ensure_ascii=False) + "\n")

    def close(self) -> None:
        """Lets other processes decode into the folder."""
        self._file.close()
        os.close(self._lock)

    def __enter__(self) -> HypothesisStream:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _check_settings(self, settings: dict) -> None:
        path = self.folder / SETTINGS
        if not path.exists():
            if self._path.exists():
                raise UserError(f"{self.folder} holds {HYPOTHESES} but no {SETTINGS}: decode into another folder")
            with atomic_write(path) as file:
                file.write(json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
            return
        try:
            before = parse_json(path.read_bytes())
        except ValueError:
            before = None
        if not isinstance(before, dict):
            raise UserError(f"{path} is damaged: decode into another folder, or remove the folder")
        changed = sorted(k for k in before.keys() | settings.keys() if before.get(k) != settings.get(k))
        if changed:
            raise SettingsChanged(
                f"{self.folder} was decoded with another {', '.join(changed)}: decode into another folder, "
                "or with --on_change restart to replace it"
            )

    def _read(self) -> dict[str, bytes]:
        """The lines there are, by id; a last line that was cut off when the writer was killed is removed."""
        if not self._path.exists():
            return {}
        *lines, rest = self._path.read_bytes().split(b"\n")
        done: dict[str, bytes] = {}
        for number, line in enumerate(lines, 1):
            name = _id(line)
            if name not in self._order or name in done:
                reason = "twice" if name in done else "damaged or of no utterance in the manifest"
                raise UserError(f"{self._path}:{number} is {reason}: remove the folder and decode again")
            done[name] = line + b"\n"
        if rest:
            with atomic_write(self._path, "wb") as file:
                file.writelines(done.values())
        return done


def _line(hypothesis: Mapping[str, Any]) -> bytes:
    return json.dumps(dict(hypothesis), ensure_ascii=False).encode() + b"\n"


def _id(line: bytes) -> str | None:
    try:
        name = parse_json(line)["id"]
    except (ValueError, TypeError, KeyError):
        return None
    return name if isinstance(name, str) else None

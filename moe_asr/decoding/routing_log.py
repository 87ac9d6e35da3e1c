"""Routing statistics of a decode on disk, batch by batch, so that an interrupted decode counts every batch once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Optional

from moe_asr.experts import RoutingStatistics
from moe_asr.files import atomic_write
from moe_asr.methods.adaptation import AdaptedRecogniser

ROUTING = "routing.jsonl"


class RoutingLog:
    """A line for each batch, written before its hypotheses, under the id of its first utterance; the last line counts.

    Args:
        folder: the decode folder
        adapted: whose statistics these are; None keeps nothing
    """

    def __init__(self, folder: Path, adapted: Optional[AdaptedRecogniser]) -> None:
        self._path, self._adapted = folder / ROUTING, adapted
        self._states: dict[str, dict] = {}
        if adapted is not None and self._path.is_file():
            *lines, _cut_off = self._path.read_bytes().split(b"\n")
            for line in map(json.loads, lines):
                self._states[line["batch"]] = line["sums"]
            with atomic_write(self._path, "wb") as file:  # without the line that a kill has cut off
                file.writelines(line + b"\n" for line in lines)

    def write(self, batch: str) -> None:
        """Keeps what the statistics have counted since the last call, as the sums of this batch."""
        if self._adapted is None:
            return
        statistics = self._adapted.statistics
        self._adapted.statistics = RoutingStatistics(statistics.domains)
        self._states[batch] = statistics.state()
        with open(self._path, "ab") as file:
            file.write(json.dumps({"batch": batch, "sums": self._states[batch]}).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def summary(self) -> Optional[dict]:
        """Of all batches, in an order that does not depend on interruptions."""
        if self._adapted is None or not any(self._states.values()):
            return None
        total = RoutingStatistics(self._adapted.config.domains)
        for batch in sorted(self._states):
            total.add(self._states[batch])
        return total.summary()

    def remove(self) -> None:
        """The summary is in `system.json` now."""
        self._path.unlink(missing_ok=True)

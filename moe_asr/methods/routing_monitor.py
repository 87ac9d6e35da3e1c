"""Watches the routing of a training run: pictures after each validation, for TensorBoard and as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Optional

from moe_asr.experts import RoutingStatistics
from moe_asr.files import atomic_write
from moe_asr.methods.adaptation import AdaptedRecogniser
from moe_asr.methods.pictures import history_figure, routing_figure, save_figure


class RoutingMonitor:
    """Shows the routing on the validation set after each validation, then starts counting anew.

    In its folder are `weights.png`, `thresholds.png` and `active_experts.png`, drawn anew each time, and
    `history.jsonl`, a line for each validation: `step`, `epoch` and for each layer its active experts and mean
    thresholds on the validation set. A threshold of each frame is averaged over real frames, one of each utterance over
    utterances, long ones counting no more than short ones; a learned one is the same for all. A run that goes on drops
    the lines that come again.

    Args:
        adapted: whose statistics these are
        folder: where pictures and history go
    """

    def __init__(self, adapted: AdaptedRecogniser, folder: str | Path) -> None:
        self.adapted, self.folder = adapted, Path(folder)

    def __call__(self, writer: Optional[Any], step: int, epoch: int) -> None:
        """Args:
        writer: TensorBoard's; None where it is switched off
        """
        statistics = self.adapted.statistics
        self.adapted.statistics = RoutingStatistics(statistics.domains)
        if not statistics.layers:
            return
        summary = statistics.summary()
        history = self._remember(summary, step, epoch)
        figures = {"weights": routing_figure(summary, expert_names(self.adapted))}
        figures |= {what: history_figure(history, what) for what in ("thresholds", "active_experts")}
        for name, figure in figures.items():
            if figure is not None:
                pixels = save_figure(figure, self.folder / f"{name}.png")
                if writer:
                    writer.add_image(f"routing/{name}", pixels, step, dataformats="HWC")
        if writer:
            writer.add_scalar("routing/active_experts", summary["mean_active_experts"], step)
            for name, layer in summary["layers"].items():
                for route, value in layer["thresholds"].items():
                    writer.add_scalar(f"threshold_{route}/{name}", value, step)

    def _remember(self, summary: dict, step: int, epoch: int) -> list[dict]:
        """Adds a line to the history; returns all of it."""
        path = self.folder / "history.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        history = [record for record in map(json.loads, lines) if record["step"] < step]
        layers = {
            name: {what: layer[what] for what in ("active_experts", "thresholds")}
            for name, layer in summary["layers"].items()
        }
        history.append({"step": step, "epoch": epoch, "layers": layers})
        with atomic_write(path) as file:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in history)
        return history


def expert_names(adapted: AdaptedRecogniser) -> tuple[str, ...]:
    """The domain that each expert stands for; empty where experts are not tied to domains."""
    config = adapted.config
    if adapted.adapter.num_experts == 1 or not any(spec.router.needs_domains for spec in adapted.adapter.specs):
        return ()
    return tuple(name for name in config.domains if name != config.base_domain)

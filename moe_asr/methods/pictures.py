"""Pictures of routing: which expert serves which domain, layer by layer."""

from __future__ import annotations

import math

from moe_asr.experts import RoutingStatistics
from moe_asr.methods.adaptation import AdaptedRecogniser


def routing_figure(statistics: RoutingStatistics, most: int = 12):
    """Heat maps, domains down and experts across, of the mean weight in each of up to `most` layers, evenly chosen."""
    from matplotlib.figure import Figure

    layers = statistics.layers
    layers = [layers[round(i * (len(layers) - 1) / max(1, most - 1))] for i in range(min(most, len(layers)))]
    columns = min(4, len(layers))
    rows = math.ceil(len(layers) / columns)
    figure = Figure(figsize=(3.2 * columns, 0.6 + (0.9 + 0.3 * len(statistics.domains)) * rows), layout="constrained")
    for i, layer in enumerate(layers):
        axes = figure.add_subplot(rows, columns, i + 1)
        weights = statistics.mean_weights(layer)
        image = axes.imshow(weights.cpu().numpy(), vmin=0, vmax=1, aspect="auto", cmap="viridis")
        axes.set_title(f"{layer}\n{statistics.active_experts(layer):.1f} experts active", fontsize=7)
        axes.set_xticks(range(weights.shape[1]))
        axes.set_yticks(range(len(statistics.domains)), statistics.domains if i % columns == 0 else [])
        axes.tick_params(labelsize=7)
        if i // columns == rows - 1:
            axes.set_xlabel("expert", fontsize=7)
    figure.colorbar(image, ax=figure.axes, label="mean weight", shrink=0.8)
    return figure


class RoutingMonitor:
    """Shows the routing on the validation set after each validation, then starts counting anew."""

    def __init__(self, adapted: AdaptedRecogniser) -> None:
        self.adapted = adapted

    def __call__(self, writer, step: int, epoch: int) -> None:
        statistics = self.adapted.statistics
        if statistics.layers and statistics.domains:
            writer.add_figure("routing/weights", routing_figure(statistics), step)
        if statistics.layers:
            writer.add_scalar("routing/active_experts", statistics.summary()["mean_active_experts"], step)
        for name, parameter in self.adapted.adapter.named_parameters().items():
            if "threshold" in name and name.endswith("_bias"):
                writer.add_scalar(f"threshold_bias/{name}", parameter.item(), step)
        self.adapted.statistics = RoutingStatistics(statistics.domains)

"""Pictures of routing: which expert serves which domain, and what becomes of thresholds and experts over training.

Everything is drawn from the plain numbers of `RoutingStatistics.summary`, in training and after decoding alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from moe_asr.files import atomic_write

DPI = 100
_CHARACTER = 0.066  # inches, of size 7
_FEW_LINES, _FEW_TILES = 6, 12  # up to so many series are lines, and so many layers large, with numbers in their cells


def routing_figure(summary: dict, experts: Sequence[str] = (), most: int = 120):
    """The mean weights in each layer, domains down and experts across, and how many experts are active.

    Args:
        summary: of `RoutingStatistics`; without names of domains, the one row is the mean over everything
        experts: their names, where each stands for a domain
        most: layers shown, evenly chosen where there are more
    """
    from matplotlib.collections import PolyCollection

    layers = _some(list(summary["layers"]), most)
    rows = summary["domains"] or ["all"]
    tables = {name: _weights(summary["layers"][name]) for name in layers}
    E, few = next(iter(tables.values())).shape[1], len(layers) <= _FEW_TILES
    top = math.ceil(10 * max(float(np.nanmax(table, initial=0.1)) for table in tables.values()) - 1e-6) / 10
    cell_w, cell_h = (0.3, 0.2) if few else (0.2, 0.14)
    left = 0.25 + _CHARACTER * max(len(_short(row)) for row in rows)
    width = max(E * cell_w, _CHARACTER * max(15, *map(len, layers))) + 0.25  # of a tile, with the space after it
    height = 0.7 + cell_h * len(rows)
    columns = min(len(layers), max(1, round(math.sqrt(1.4 * len(layers) * height / width))))
    lines = _legend(experts, max(3.0, columns * width))
    tall = math.ceil(len(layers) / columns) * height + 0.15 * len(lines) + 0.15
    size = left + max(3.0 if experts else 0.0, columns * width) + 0.7, max(1.2, tall)
    figure, axes = _canvas(*size)
    cells = [_cells(np.linspace(1, 0, 60)[:, None], 1.0, size[0] - 0.5, 0.4, 0.12, 0.01)]  # the scale
    for number, name in enumerate(layers):
        x, y = left + number % columns * width, 0.1 + number // columns * height + 0.3  # from the upper left corner
        cells.append(_cells(tables[name], top, x, y, cell_w, cell_h))
        active = summary["layers"][name]["active_experts"]
        axes.text(x, y - 0.04, f"{name}\n{active:.1f} experts active", fontsize=7, va="bottom")
        last = number + columns >= len(layers)
        for e in range(E if few or last else 0):
            axes.text(x + (e + 0.5) * cell_w, y + cell_h * len(rows) + 0.03, str(e), fontsize=6, va="top", ha="center")
        for row, label in enumerate(rows if number % columns == 0 else ()):
            axes.text(x - 0.06, y + (row + 0.5) * cell_h, _short(label), fontsize=7, va="center", ha="right")
        for (row, e), value in np.ndenumerate(tables[name]) if few and tables[name].size * len(layers) <= 200 else ():
            text, colour = "" if math.isnan(value) else f"{value:.2f}", "white" if value < 0.6 * top else "black"
            place = x + (e + 0.5) * cell_w, y + (row + 0.5) * cell_h
            axes.text(*place, text, fontsize=6, color=colour, ha="center", va="center")
    for number, line in enumerate(reversed(lines)):
        axes.text(left, size[1] - 0.08 - 0.15 * number, line, fontsize=7, va="bottom")
    for value, y in ((top, 0.4), (0.0, 1.0)):
        axes.text(size[0] - 0.34, y, f"{value:.1f}", fontsize=6, va="center")
    axes.text(size[0] - 0.5, 0.33, "weight", fontsize=7, va="bottom")
    places, colours = (np.concatenate(parts) for parts in zip(*cells))
    # One collection of all cells: an image of its own for each layer would take ten times as long.
    axes.add_collection(PolyCollection(places, facecolors=colours, edgecolors="none", antialiased=False))
    return figure


def confusion_figure(confusion: Sequence[Sequence[int]], names: Sequence[str]):
    """Shares of the utterances of each class (down) that were taken for each class (across), and their numbers."""
    from matplotlib.collections import PolyCollection

    counts = np.array(confusion, float)
    totals = counts.sum(1, keepdims=True)
    shares = np.where(totals > 0, counts / np.maximum(totals, 1), math.nan)
    labels, cell_w, cell_h = [_short(name) for name in names], 0.42, 0.26
    side = 0.2 + _CHARACTER * max(map(len, labels))
    size = side + cell_w * len(names) + 0.3 + side * 0.75, 0.45 + side * 0.75 + cell_h * len(names) + 0.15
    figure, axes = _canvas(*size)
    x, y = side, size[1] - 0.15 - cell_h * len(names)
    places, colours = _cells(shares, 1.0, x, y, cell_w, cell_h)
    axes.add_collection(PolyCollection(places, facecolors=colours, edgecolors="none", antialiased=False))
    axes.text(0.1, 0.1, "utterances of a class (row) taken for a class (column)", fontsize=7, va="top")
    for k, label in enumerate(labels):
        axes.text(x - 0.06, y + (k + 0.5) * cell_h, label, fontsize=7, va="center", ha="right")
        axes.text(x + (k + 0.4) * cell_w, y - 0.05, label, fontsize=7, va="bottom", rotation=45, rotation_mode="anchor")
    for (row, column), share in np.ndenumerate(shares):
        place = x + (column + 0.5) * cell_w, y + (row + 0.5) * cell_h
        text = "" if math.isnan(share) else f"{int(counts[row, column]):,}"
        axes.text(*place, text, fontsize=7, color="black" if share >= 0.6 else "white", ha="center", va="center")
    return figure


def history_figure(history: Sequence[dict], what: str, most: int = 120):
    """What became of the thresholds of each layer and route, or of its number of active experts, over the updates.

    A few layers are lines, more are the rows of a heat map; None where there is nothing to show.

    Args:
        history: `step` and `layers` of each validation, see `RoutingMonitor`
        what: thresholds or active_experts
    """
    series: dict[tuple[str, str], list[float]] = {}
    for number, record in enumerate(history):
        for name, layer in record["layers"].items():
            values = layer[what] if isinstance(layer[what], dict) else {"": layer[what]}
            for route, value in values.items():
                row = series.setdefault((route, name), [math.nan] * len(history))
                row[number] = value
    if not series:
        return None
    routes = sorted({route for route, _ in series})
    named = {f"{name} {route}".strip(): row for r in routes for (route, name), row in series.items() if route == r}
    steps = [record["step"] for record in history]
    label = {"thresholds": "threshold x experts, or sparsity", "active_experts": "active experts"}[what]
    if len(named) <= _FEW_LINES:
        return _lines(named, steps, label)
    return _rows({name: named[name] for name in _some(list(named), most)}, steps, label)


def save_figure(figure, path: str | Path) -> np.ndarray:
    """Writes a PNG, atomically; returns its pixels (rows, columns, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    with atomic_write(path, "wb") as file:
        Image.fromarray(pixels).save(file, format="png", compress_level=4)
    return pixels


def _lines(series: dict[str, list[float]], steps: Sequence[int], label: str):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2 + 0.18 * len(series)), dpi=DPI)
    axes = figure.add_axes([0.1, 0.5 / (3.2 + 0.18 * len(series)), 0.86, 2.6 / (3.2 + 0.18 * len(series))])
    for name, values in series.items():
        axes.plot(steps, values, marker="o", markersize=2.5, linewidth=1.2, label=name)
    _decorate(axes, steps, steps)
    axes.set_ylabel(label, fontsize=8)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="lower left", bbox_to_anchor=(0, 1.0), frameon=False, borderaxespad=0.2)
    return figure


def _rows(series: dict[str, list[float]], steps: Sequence[int], label: str):
    from matplotlib.figure import Figure

    left = 0.3 + _CHARACTER * max(map(len, series))
    height = 0.16 * len(series) + 0.9
    width = left + max(2.5, min(6.0, 0.25 * len(steps))) + 1.0
    figure = Figure(figsize=(width, height), dpi=DPI)
    axes = figure.add_axes([left / width, 0.45 / height, 1 - (left + 1.0) / width, 0.16 * len(series) / height])
    table = np.array(list(series.values()))
    low, high = math.floor(10 * np.nanmin(table) - 0.1) / 10, math.ceil(10 * np.nanmax(table) + 0.1) / 10
    look = {"aspect": "auto", "cmap": _colours(), "interpolation": "nearest"}
    image = axes.imshow(_visible(table), vmin=low, vmax=high, **look)
    axes.set_yticks(range(len(series)), list(series), fontsize=7)
    _decorate(axes, range(len(steps)), steps)
    bar = figure.add_axes([1 - 0.75 / width, 0.45 / height, 0.12 / width, min(2.0, 0.16 * len(series)) / height])
    figure.colorbar(image, cax=bar).ax.tick_params(labelsize=6)
    axes.set_title(label, fontsize=8, loc="left")
    return figure


def _decorate(axes, places: Sequence[int], steps: Sequence[int]) -> None:
    """Updates across, five of them named."""
    shown = sorted({round(i * (len(steps) - 1) / 4) for i in range(5)})
    axes.set_xticks([places[i] for i in shown], [f"{steps[i]:,}" for i in shown])
    axes.tick_params(labelsize=7)
    axes.set_xlabel("updates", fontsize=8)


def _canvas(width: float, height: float):
    """A figure whose one set of axes is measured in inches from its upper left corner."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI)
    axes = figure.add_axes([0, 0, 1, 1])
    axes.axis("off")
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    return figure, axes


def _cells(table: np.ndarray, top: float, x: float, y: float, cell_w: float, cell_h: float) -> tuple:
    """Corners (cells, 4, 2) and colours of a table whose upper left corner is at (x, y)."""
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    places = np.stack(np.meshgrid(np.arange(table.shape[1]), np.arange(table.shape[0])), -1).reshape(-1, 1, 2)
    return (places + corners) * [cell_w, cell_h] + [x, y], _colours()(_visible(table / top)).reshape(-1, 4)


def _weights(layer: dict) -> np.ndarray:
    """(domains, experts), NaN for a domain that did not occur."""
    rows = layer["mean_weights"] or [layer["overall_weights"]]
    width = len(layer["overall_weights"])
    return np.array([[math.nan] * width if row is None else row for row in rows])


def _legend(experts: Sequence[str], width: float) -> list[str]:
    """Which expert stands for which domain, in lines that fit."""
    lines, room = [""], int(width / _CHARACTER)
    for number, name in enumerate(experts):
        part = f"{number} {_short(name)}"
        if lines[-1] and len(lines[-1]) + 4 + len(part) > room:
            lines.append("")
        lines[-1] += f"{'   ' if lines[-1] else ''}{part}"
    return ["experts:", *lines] if experts else []


def _visible(table: np.ndarray) -> np.ma.MaskedArray:
    return np.ma.masked_invalid(table)


def _colours():
    from matplotlib import colormaps

    return colormaps["viridis"].with_extremes(bad="lightgrey")


def _some(names: Sequence[str], most: int) -> list[str]:
    count = min(most, len(names))
    return [names[round(i * (len(names) - 1) / max(1, count - 1))] for i in range(count)]


def _short(label: str) -> str:
    return label if len(label) <= 18 else label[:17] + "…"

import numpy as np
import pytest
import torch
from PIL import Image

from moe_asr.experts import RoutingStatistics
from moe_asr.methods.pictures import confusion_figure, history_figure, routing_figure, save_figure

DOMAINS = ["Southwestern Mandarin of Sichuan", "Min", "unheard"]


def summary(layers, domains=DOMAINS, E=5):
    statistics = RoutingStatistics(domains)
    generator = torch.Generator().manual_seed(0)
    for name in layers:
        weights = torch.randn(8, 6, E, generator=generator).softmax(-1)
        statistics.update(name, weights, None, torch.arange(8) % 2)
    return statistics.summary()


def names(number):
    return [f"lm.layers.{n}.self_attn.q_proj" for n in range(number)]


def records(layers, validations=4):
    values = {name: {"active_experts": 2.0 + n, "thresholds": {"global": 0.5, "local": 0.4}} for n, name in
              enumerate(layers)}  # fmt: skip
    return [{"step": 10 * (i + 1), "layers": values} for i in range(validations)]


def texts(figure):
    """What is written in a figure once drawn, the boxes around it in pixels, and its angle."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    beyond = set()  # matplotlib has labels of hidden axes and of places outside of them, and does not draw those
    for axes in figure.axes:
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            for place, label in zip(axis.get_majorticklocs(), axis.get_majorticklabels()):
                if not axes.axison or not min(limits) <= place <= max(limits):
                    beyond.add(label)
    written = [t for t in figure.findobj(Text) if t.get_text() and t.get_visible() and t not in beyond]
    return [(text.get_text(), text.get_window_extent(canvas.get_renderer()), text.get_rotation()) for text in written]


FIGURES = {
    "one layer": lambda: routing_figure(summary(["projector.linear1"]), ["a", "b", "c", "d", "e"]),
    "two layers": lambda: routing_figure(summary(names(2)), DOMAINS),
    "thirteen layers": lambda: routing_figure(summary(names(13)), DOMAINS),
    "hundred layers": lambda: routing_figure(summary(names(100)), DOMAINS),
    "no domains": lambda: routing_figure(summary(names(2), domains=[])),
    "many experts": lambda: routing_figure(summary(names(3), E=30)),
    "threshold lines": lambda: history_figure(records(names(2)), "thresholds"),
    "threshold rows": lambda: history_figure(records(names(9)), "thresholds"),
    "active experts": lambda: history_figure(records(names(100), 30), "active_experts"),
    "confusion": lambda: confusion_figure(np.arange(49).reshape(7, 7) * 20, [*DOMAINS, "Wu", "Yue-Ping", "f", "g"]),
    "one validation": lambda: history_figure(records(names(2), 1), "thresholds"),
}


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_cut_off_and_no_texts_overlap(name):
    figure = FIGURES[name]()
    width, height = figure.get_size_inches() * figure.dpi
    boxes = texts(figure)
    for text, box, _ in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, text
    for number, (text, box, angle) in enumerate(boxes):
        for other, another, other_angle in boxes[number + 1 :]:
            if angle == other_angle == 45:  # side by side: a line of size 7 takes 14 pixels
                assert abs(box.x0 - another.x0) * 2**-0.5 > 14 or box.y0 != another.y0, (text, other)
                continue
            across = min(box.x1, another.x1) - max(box.x0, another.x0)
            assert min(across, min(box.y1, another.y1) - max(box.y0, another.y0)) < 1, (text, other)


def test_cells_have_the_colour_of_their_weight(tmp_path):
    """Each cell of the picture is looked up in the scale that stands beside it."""
    from matplotlib import colormaps

    told = summary(["a", "b"])
    figure = routing_figure(told)
    pixels = save_figure(figure, tmp_path / "x.png")
    assert (np.asarray(Image.open(tmp_path / "x.png")) == pixels).all()
    top = np.ceil(10 * np.nanmax([row for layer in told["layers"].values() for row in layer["mean_weights"][:2]])) / 10
    [collection] = figure.axes[0].collections
    corners = np.array([path.vertices[:4].mean(0) for path in collection.get_paths()])[60:].reshape(2, 3, 5, 2)
    for layer, places in zip(told["layers"].values(), corners):
        for row, weights in zip(places, layer["mean_weights"]):
            for (x, y), weight in zip(row, weights or [None] * 5):
                colour = pixels[round(100 * y) - 8, round(100 * x) - 13]  # in a corner, where no number is
                expected = (211, 211, 211) if weight is None else colormaps["viridis"](weight / top, bytes=True)[:3]
                assert np.abs(colour.astype(int) - expected).max() <= 2


def test_every_layer_is_shown_once_and_many_are_thinned_out():
    for count, most in ((2, 120), (12, 120), (100, 120), (9, 3)):
        shown = [text.split("\n")[0] for text, _, _ in texts(routing_figure(summary(names(count)), most=most))
                 if "experts active" in text]  # fmt: skip
        assert shown == (names(count) if count <= most else [names(9)[i] for i in (0, 4, 8)])


def test_history_of_nothing():
    empty = [{"step": 1, "layers": {"a": {"active_experts": 1.0, "thresholds": {}}}}]
    assert history_figure(empty, "thresholds") is None
    assert history_figure(empty, "active_experts") is not None

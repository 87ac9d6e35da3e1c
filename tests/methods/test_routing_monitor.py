import json

import pytest
from PIL import Image
from recognisers import batch, features, fill, recogniser

from moe_asr.experts import ExpertSpec, RouterSpec
from moe_asr.methods.adapt import adapt
from moe_asr.methods.adaptation import AdaptationConfig
from moe_asr.methods.routing_monitor import RoutingMonitor, expert_names

NAMES = ("a", "b", "c")


class Writer:
    def __init__(self):
        self.images, self.scalars = {}, {}

    def add_image(self, name, pixels, step, dataformats):
        assert dataformats == "HWC" and pixels.shape[2] == 3
        self.images[name] = step

    def add_scalar(self, name, value, step):
        self.scalars[name] = value


def adapted(router=RouterSpec(), **options):
    experts = ExpertSpec(("default",), 3 - ("base_domain" in options), 2, router=router)
    config = AdaptationConfig(experts, domains=NAMES, global_route="label", **options)
    return fill(adapt(recogniser("speech_llm"), config)).eval()


def validate(model):
    model(*features(batch()), batch())


def history(folder):
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def test_pictures_history_and_scalars(tmp_path):
    model, writer, monitor = adapted(), Writer(), None
    monitor = RoutingMonitor(model, tmp_path)
    validate(model)
    expected = model.statistics.summary()
    monitor(writer, 10, 1)
    for name in ("weights", "thresholds", "active_experts"):
        assert Image.open(tmp_path / f"{name}.png").size[0] > 200 and writer.images[f"routing/{name}"] == 10
    layer = "projector.linear1"
    assert set(expected["layers"][layer]["thresholds"]) == {"global", "local"}
    assert writer.scalars[f"threshold_global/{layer}"] == expected["layers"][layer]["thresholds"]["global"]
    assert writer.scalars["routing/active_experts"] == expected["mean_active_experts"]
    [record] = history(tmp_path)
    assert (record["step"], record["epoch"]) == (10, 1) and set(record["layers"]) == set(model.adapter.layers)
    kept = {key: expected["layers"][layer][key] for key in ("active_experts", "thresholds")}
    assert record["layers"][layer] == kept
    assert model.statistics.layers == []  # counts anew


def test_a_run_that_goes_on_has_the_history_of_one_that_was_never_stopped(tmp_path):
    def run(folder, steps):
        model = adapted()
        monitor = RoutingMonitor(model, folder)
        for step in steps:
            for _ in range(step % 3 + 1):
                validate(model)
            monitor(None, step, step)

    run(tmp_path / "whole", [1, 2, 3, 4])
    run(tmp_path / "parts", [1, 2, 3])
    run(tmp_path / "parts", [2, 3, 4])  # the checkpoint of the first part was that of step 1
    for name in ("history.jsonl", "weights.png", "thresholds.png", "active_experts.png"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_without_thresholds_or_tensorboard(tmp_path):
    model = adapted(RouterSpec(route="local", select="all"))
    validate(model)
    RoutingMonitor(model, tmp_path)(None, 1, 1)
    assert not (tmp_path / "thresholds.png").exists() and (tmp_path / "weights.png").exists()
    RoutingMonitor(model, tmp_path / "none")(None, 2, 2)  # there was no validation set
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("options, names", [
    (dict(), NAMES), (dict(base_domain="b"), ("a", "c")), (dict(router=RouterSpec(route="local")), ()),
])  # fmt: skip
def test_experts_have_the_names_of_their_domains(options, names):
    assert expert_names(adapted(**options)) == names

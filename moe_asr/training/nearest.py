"""Which of some adaptations suits other speech best: where experts for one more language may start."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import torch

from moe_asr.data.batches import BatchLoader, DataConfig
from moe_asr.data.features import log_mel
from moe_asr.data.languages import check_languages
from moe_asr.data.splits import read_speakers
from moe_asr.device import pick_device
from moe_asr.errors import UserError
from moe_asr.files import atomic_write
from moe_asr.methods.adapt import load_adapted
from moe_asr.methods.adaptation import AdaptedRecogniser
from moe_asr.models.folder import LoadedModel, load_model
from moe_asr.models.interface import Recogniser
from moe_asr.training.each import PLACE


@dataclass(frozen=True)
class NearestConfig:
    """Measures the loss of each of some adaptations on a manifest, and names the one with the smallest.

    Training that starts from it (`train --init_adaptation`) leaves its files and those of the others as they are.

    Args:
        model: model folder that they were trained on
        adaptations: folder of each, with {name} in it, such as exp/experts/{name}/final
        names: text file with one name a line
        manifest: speech to measure on, such as the training data of a new language
        language: only utterances of this language; empty takes all
        output: text file for the folder of the nearest one, for scripts
        max_duration: of a batch, in seconds, padding included
        device: cpu, cuda, ...; auto takes a GPU if there is one
    """

    model: str
    adaptations: str
    names: str
    manifest: str
    language: str = ""
    output: Optional[str] = None
    max_duration: float = 120.0
    device: str = "auto"

    def __post_init__(self) -> None:
        if PLACE not in self.adaptations:
            raise UserError(f"adaptations must contain {PLACE}, where each name is put in")


def nearest(config: NearestConfig) -> str:
    """Prints a line for the base and for each adaptation; returns the name of the nearest.

    Raises:
        UserError: there is no such adaptation, or it has several experts, which are no start for one more; see also
            `load_adapted` and `BatchLoader`
    """
    loaded, names = load_model(config.model), read_speakers(config.names)
    if not isinstance(loaded.model, Recogniser):
        raise UserError(f"{config.model} is no recogniser; give the model folder of one")
    data = DataConfig(
        [config.manifest], language=config.language, max_duration=config.max_duration, shuffle=False
    )  # fmt: skip
    loader = BatchLoader(data, loaded.tokens, sample_rate=loaded.config.features.sample_rate)
    if codes := getattr(loaded.model, "languages", {}):
        check_languages(loader.utterances, codes, "leave these utterances out")
    model = loaded.model.to(pick_device(config.device)).eval()
    print(f"{'base':12} loss {mean_loss(loaded, None, loader):.4f}")
    losses = {}
    for name in names:
        adapted = load_adapted(model, config.adaptations.replace(PLACE, name))
        try:
            if adapted.adapter.num_experts > 1:
                raise UserError(f"{name} has {adapted.adapter.num_experts} experts: give single LoRAs")
            losses[name] = mean_loss(loaded, adapted, loader)
        finally:
            adapted.adapter.detach()
        print(f"{name:12} loss {losses[name]:.4f}", flush=True)
    best = min(losses, key=losses.get)
    folder = config.adaptations.replace(PLACE, best)
    print(f"nearest: {best}, start from {folder}")
    if config.output:
        Path(config.output).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(config.output) as file:
            file.write(f"{folder}\n")
    return best


@torch.inference_mode()
def mean_loss(loaded: LoadedModel, adapted: Optional[AdaptedRecogniser], loader: BatchLoader) -> float:
    """Loss over all of the data by its count, in nats for each token."""
    total = count = 0.0
    device = next(loaded.model.parameters()).device
    for batch in loader:
        batch = batch.to(device)
        features = log_mel(batch.audio_NS, batch.audio_lengths_N, loaded.config.features)
        loss = (adapted or loaded.model)(*features, batch)
        total, count = total + float(loss.total), count + float(loss.count)
    return total / count

"""A domain classifier on a manifest: its accuracy for each domain, and which domain is taken for which."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from moe_asr.data.batches import BatchLoader, DataConfig
from moe_asr.data.features import log_mel
from moe_asr.data.manifests import read_manifests
from moe_asr.decoding.labels import check_labels
from moe_asr.device import pick_device
from moe_asr.errors import UserError
from moe_asr.files import atomic_write
from moe_asr.methods.pictures import confusion_figure, save_figure
from moe_asr.models.domain_classifier import DomainClassifier
from moe_asr.models.folder import LoadedModel, load_model
from moe_asr.provenance import record
from moe_asr.scoring.classification import Classification, Classified, classification
from moe_asr.scoring.tables import percent, percent_interval


@dataclass(frozen=True)
class ClassifyConfig:
    """Classifies the utterances of a manifest, and prints how well. Writes confusion.txt, confusion.png and
    classification.json, which also has the probability of each domain for each utterance.

    Args:
        model: model folder of a domain classifier
        manifest: labelled utterances
        out_dir: folder to write to
        domain_key: the field that the domains are labels in
        unknown_domain: what to do with an utterance whose label the classifier does not know: error, or leave_out
        bootstrap: replications for confidence intervals; speakers are drawn where all are known, else utterances
        max_duration: of a batch, in seconds, padding included
        num_workers: processes that load audio
        device: cpu, cuda, ...; auto takes a GPU if there is one
    """

    model: str
    manifest: str
    out_dir: str
    domain_key: Literal["accent", "speaker", "language"] = "accent"
    unknown_domain: Literal["error", "leave_out"] = "error"
    bootstrap: int = 1000
    max_duration: float = 120.0
    num_workers: int = 0
    device: str = "auto"


def classify(config: ClassifyConfig) -> None:
    """Runs the whole of it.

    Raises:
        UserError: the model is no domain classifier, or a label is unknown to it; see also `BatchLoader`
    """
    loaded = load_model(config.model)
    if not isinstance(loaded.model, DomainClassifier):
        raise UserError(f"{config.model} is no domain classifier; give the model folder of one")
    domains = loaded.model.domains
    if config.unknown_domain == "error":
        utterances, instead = read_manifests([config.manifest]), "unknown_domain to leave_out"
        check_labels(utterances, config.domain_key, domains, config.manifest, config.model, instead)
    utterances, posteriors = _classified(config, loaded)
    if not utterances:
        raise UserError(f"no utterance of {config.manifest} has a label that {config.model} knows")
    found = classification(utterances, domains, config.bootstrap)
    text = f"{_headline(config, found)}\n\n{found.table()}"
    facts = {**dataclasses.asdict(found), "mean": found.mean, "majority": found.majority, "posteriors": posteriors}
    out = Path(config.out_dir)
    save_figure(confusion_figure(found.confusion, domains), out / "confusion.png")
    with atomic_write(out / "confusion.txt") as file:
        file.write(text)
    with atomic_write(out / "classification.json") as file:
        json.dump({**facts, "settings": dataclasses.asdict(config), **record()}, file, indent=1, ensure_ascii=False)
        file.write("\n")
    print(f"{text}\nwritten to {out}: confusion.txt, confusion.png, classification.json")


@torch.inference_mode()
def _classified(config: ClassifyConfig, loaded: LoadedModel) -> tuple[list[Classified], dict[str, list[float]]]:
    """Those whose label is known, and the posteriors of each utterance, by its id."""
    device, model = pick_device(config.device), loaded.model
    loader = BatchLoader(
        DataConfig(
            [config.manifest],
            max_duration=config.max_duration,
            shuffle=False,
            domain_key=config.domain_key,
            unknown_domain="allow",
            num_workers=config.num_workers,
        ),
        None,
        model.domains,
        sample_rate=loaded.config.features.sample_rate,
    )
    model.to(device).eval()
    utterances, posteriors = [], {}
    for batch in loader:
        batch = batch.to(device)
        p_NE = model.posteriors(*log_mel(batch.audio_NS, batch.audio_lengths_N, loaded.config.features))
        rows = zip(batch.ids, batch.speakers, batch.domains_N.tolist(), p_NE.argmax(1).tolist(), p_NE.tolist())
        for name, speaker, label, guess, p_E in rows:
            posteriors[name] = [round(p, 6) for p in p_E]
            if label >= 0:
                utterances.append(Classified(name, model.domains[label], model.domains[guess], speaker))
    return utterances, posteriors


def _headline(config: ClassifyConfig, found: Classification) -> str:
    return (
        f"{Path(config.manifest).name}: accuracy {percent(found.overall.rate)} % "
        f"{percent_interval(found.overall.interval)} of {found.overall.utterances:,} utterances (95 % interval, "
        f"{found.unit}s resampled), mean of the classes {percent(found.mean)} %, always guessing the most frequent "
        f"{percent(found.majority)} %"
    )

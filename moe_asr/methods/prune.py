"""Leaves out the experts of an adaptation that get the smallest weight on some data: our reading of expert pruning."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch

from moe_asr.data.batches import BatchLoader, DataConfig
from moe_asr.data.features import log_mel
from moe_asr.data.manifests import read_manifests
from moe_asr.device import pick_device
from moe_asr.errors import UserError
from moe_asr.experts.prune import choose_experts, prune_experts
from moe_asr.files import check_folder_name
from moe_asr.methods.adapt import load_adapted
from moe_asr.methods.adaptation import AdaptedRecogniser
from moe_asr.models.folder import LoadedModel, load_model
from moe_asr.models.interface import Recogniser

PLACE = "{speaker}"


@dataclass(frozen=True)
class PruneConfig:
    """Writes an adaptation without the experts that get the smallest mean weight on the utterances of a manifest.

    The weights are those under which the model scores the transcripts; each router drops experts of its own.

    Args:
        model: model folder
        adaptation: folder of experts trained on this model; with {speaker} in it that of each speaker of the manifest,
            each pruned by this speaker's utterances
        manifest: utterances to measure the weights on, those that adaptation is chosen by
        out_dir: adaptation folder to write, with {speaker} where adaptation has it
        drop: experts of each router to leave out
        max_duration: of a batch, in seconds, padding included
        num_workers: processes that load audio
        device: cpu, cuda, ...; auto takes a GPU if there is one
    """

    model: str
    adaptation: str
    manifest: str
    out_dir: str
    drop: int
    max_duration: float = 120.0
    num_workers: int = 0
    device: str = "auto"


def prune(config: PruneConfig) -> None:
    """Runs the command.

    Raises:
        UserError: see `load_model`, `load_adapted`, `choose_experts` and `prune_experts`
    """
    if (PLACE in config.adaptation) != (PLACE in config.out_dir):
        raise UserError(f"{PLACE} must be in both adaptation and out_dir, or in none of them")
    speakers = [""]
    if PLACE in config.adaptation:
        speakers = sorted({utterance.speaker for utterance in read_manifests([config.manifest])})
        if not speakers[0]:
            raise UserError(f"{config.manifest} has utterances without a speaker, but adaptation asks for {PLACE}")
        for speaker in speakers:
            check_folder_name(speaker, config.manifest)
    for speaker in speakers:
        folder, out = (path.replace(PLACE, speaker) for path in (config.adaptation, config.out_dir))
        if Path(folder).resolve() == Path(out).resolve():
            raise UserError(f"out_dir is the adaptation itself: give another folder than {folder}")
        loaded = load_model(config.model)
        if not isinstance(loaded.model, Recogniser):
            raise UserError(f"{config.model} is no recogniser; give the model folder of one")
        adapted = load_adapted(loaded.model, folder)
        kept = _prune(config, loaded, adapted, speaker)
        adapted.save(out, {"pruned": folder, "kept": kept})
        choice = "; ".join(f"{router} keeps {' '.join(map(str, experts))}" for router, experts in kept.items())
        adapter = adapted.adapter
        print(f"{out}: {adapter.num_experts} experts, {adapter.num_parameters():,} parameters; {choice}")


def _prune(config: PruneConfig, loaded: LoadedModel, adapted: AdaptedRecogniser, speaker: str) -> dict[str, list[int]]:
    """Puts an adapter of fewer experts in place of that of `adapted`; returns the experts that each router keeps."""
    loader = BatchLoader(
        DataConfig(
            [config.manifest],
            speaker=speaker,
            max_duration=config.max_duration,
            shuffle=False,
            unknown_domain="allow",
            domain_key=adapted.config.domain_key,
            num_workers=config.num_workers,
        ),
        loaded.tokens,
        adapted.config.domains,
        sample_rate=loaded.config.features.sample_rate,
    )
    device = pick_device(config.device)
    adapted.to(device).eval()
    with torch.no_grad():
        for batch in loader:
            batch = batch.to(device)
            adapted(*log_mel(batch.audio_NS, batch.audio_lengths_N, loaded.config.features), batch)
    kept = choose_experts(adapted.adapter, adapted.statistics, config.drop)
    adapted.adapter = prune_experts(adapted.adapter, kept)
    left = {"num_experts": adapted.adapter.num_experts}
    parts = {"experts": adapted.config.experts, "saml": adapted.config.saml}
    changed = {name: dataclasses.replace(part, **left) for name, part in parts.items() if part is not None}
    adapted.config = dataclasses.replace(adapted.config, initial_experts=(), **changed)
    return kept

"""A decode from its configuration: a model, perhaps an adaptation, and a manifest become a decode folder."""

from __future__ import annotations

import hashlib
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Optional

import torch
from rich.console import Console
from rich.progress import Progress

from moe_asr.config import to_plain
from moe_asr.data.batches import Batch, BatchLoader, DataConfig
from moe_asr.data.features import log_mel
from moe_asr.data.manifests import Utterance
from moe_asr.decoding.ctc import SearchConfig, search
from moe_asr.decoding.routing_log import ROUTING, RoutingLog
from moe_asr.decoding.stream import HypothesisStream
from moe_asr.device import pick_device
from moe_asr.errors import SettingsChanged, UserError
from moe_asr.experts import adapter_identity, base_identity
from moe_asr.methods.adaptation import AdaptedRecogniser, load_adapted
from moe_asr.models.folder import LoadedModel, load_model
from moe_asr.models.interface import Recogniser
from moe_asr.provenance import record


@dataclass(frozen=True)
class DecodeConfig:
    """Decodes a manifest; a decode that was stopped goes on. Nothing of the model's architecture is said again.

    Args:
        model: model folder
        manifest: utterances to decode
        out_dir: decode folder to write
        adaptation: folder of experts trained on this model
        search: how hypotheses are found
        global_route: where the domain comes from, if not as in training: posterior, label or uniform
        fallback: above 0, experts fade towards the base model where the domain is uncertain
        max_duration: of a batch, in seconds, padding included
        num_workers: processes that load audio
        on_change: what to do with a decode in out_dir of another model or other settings: error, or restart, which
            throws it away
        device: cpu, cuda, ...; auto takes a GPU if there is one
    """

    model: str
    manifest: str
    out_dir: str
    adaptation: Optional[str] = None
    search: SearchConfig = field(default_factory=SearchConfig)
    global_route: Optional[Literal["posterior", "label", "uniform"]] = None
    fallback: float = 0.0
    max_duration: float = 120.0
    num_workers: int = 0
    on_change: Literal["error", "restart"] = "error"
    device: str = "auto"


def decode(config: DecodeConfig) -> None:
    """Runs the whole of it.

    Raises:
        UserError: see `load_model`, `load_adapted`, `BatchLoader` and `HypothesisStream`
    """
    if config.fallback < 0:
        raise UserError(f"fallback must not be negative, but is {config.fallback}")
    if config.adaptation is None and (config.global_route or config.fallback):
        raise UserError("global_route and fallback are for experts; give their folder with --adaptation")
    device = pick_device(config.device)
    loaded = load_model(config.model)
    if not isinstance(loaded.model, Recogniser):
        raise UserError(f"{config.model} is no recogniser; give the model folder of one")
    adapted = load_adapted(loaded.model, config.adaptation) if config.adaptation else None
    loader = BatchLoader(
        DataConfig(
            [config.manifest],
            config.max_duration,
            shuffle=False,
            unknown_domain="allow",
            domain_key=adapted.config.domain_key if adapted else "accent",
            num_workers=config.num_workers,
        ),
        loaded.tokens,
        adapted.config.domains if adapted else (),
        sample_rate=loaded.config.features.sample_rate,
    )
    (adapted or loaded.model).to(device).eval()
    started = time.perf_counter()
    with _open_stream(config, _settings(config, loaded, adapted), [u.id for u in loader.utterances]) as stream:
        if stream.complete:
            print(f"{config.out_dir}: decoded already, nothing to do")
            return
        log = RoutingLog(Path(config.out_dir), adapted)
        utterances = {u.id: u for u in loader.utterances}
        decoded = 0.0
        with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
            task = bar.add_task(f"decode {Path(config.manifest).name}", total=len(utterances))
            for batch in loader:  # cut alike in every run, so that an interrupted decode ends in the same bytes
                if stream.missing(batch.ids):
                    texts = _texts(config, loaded, adapted, batch.to(device))
                    log.write(batch.ids[0])
                    stream.write([_line(utterances[name], text) for name, text in zip(batch.ids, texts)])
                    decoded += sum(utterances[name].seconds for name in batch.ids)
                bar.advance(task, len(batch))
        elapsed = time.perf_counter() - started
        stream.finish(_system(config, loaded, adapted, log.summary(), elapsed))
        log.remove()
    print(f"{config.out_dir}: {len(utterances):,} utterances, {decoded / elapsed:.0f} times faster than real time")


def _open_stream(config: DecodeConfig, settings: dict, ids: list[str]) -> HypothesisStream:
    try:
        return HypothesisStream(config.out_dir, settings, ids)
    except SettingsChanged:
        if config.on_change == "error":
            raise
        (Path(config.out_dir) / ROUTING).unlink(missing_ok=True)
        return HypothesisStream(config.out_dir, settings, ids, restart=True)


@torch.inference_mode()
def _texts(config: DecodeConfig, loaded: LoadedModel, adapted: Optional[AdaptedRecogniser], batch: Batch) -> list[str]:
    features_NTF, lengths_N = log_mel(batch.audio_NS, batch.audio_lengths_N, loaded.config.features)
    route = adapted.route(batch, lengths_N, config.global_route, config.fallback) if adapted else nullcontext()
    with route:
        log_probs_NTV, frames_N = loaded.model.log_probs(features_NTF, lengths_N)
    return [loaded.tokens.decode(ids) for ids in search(log_probs_NTV, frames_N, config.search, loaded.model.blank)]


def _line(utterance: Utterance, text: str) -> dict:
    return {
        "id": utterance.id,
        "ref": utterance.raw_text or utterance.text,
        "hyp": text,
        "speaker": utterance.speaker,
        "accent": utterance.accent,
        "language": utterance.language,
        "duration": utterance.seconds,
    }


def _settings(config: DecodeConfig, loaded: LoadedModel, adapted: Optional[AdaptedRecogniser]) -> dict:
    """All that decides the hypotheses."""
    return {
        "model": base_identity(loaded.model),
        "adaptation": adapter_identity(adapted.adapter) if adapted else None,
        "classifier": base_identity(adapted.classifier) if adapted and adapted.classifier else None,
        "manifest": hashlib.sha256(Path(config.manifest).read_bytes()).hexdigest(),
        "search": to_plain(config.search),
        "global_route": config.global_route,
        "fallback": config.fallback,
        "max_duration": config.max_duration,
    }


def _system(
    config: DecodeConfig,
    loaded: LoadedModel,
    adapted: Optional[AdaptedRecogniser],
    routing: Optional[dict],
    seconds: float,
) -> dict:
    """Facts of the system for the tables; routers count as trained, the accent recogniser does not."""
    experts = adapted.adapter.num_parameters() if adapted else 0
    base = sum(p.numel() for p in loaded.model.parameters()) - experts
    return {
        "model": config.model,
        "adapter": config.adaptation,
        "trainable_parameters": experts if adapted else base if loaded.config.finetuned else 0,
        "total_parameters": base,
        "mean_active_experts": routing["mean_active_experts"] if routing else None,
        "routing": routing,
        "normaliser": loaded.config.normaliser,
        "seconds": seconds,
        **record(),
    }

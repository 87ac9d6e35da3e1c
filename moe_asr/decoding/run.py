"""A decode from its configuration: a model, perhaps an adaptation, and a manifest become a decode folder."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Optional

import torch
from rich.console import Console
from rich.progress import Progress

from moe_asr.config import to_plain
from moe_asr.data.batches import Batch, BatchLoader, DataConfig
from moe_asr.data.features import log_mel
from moe_asr.data.lang import read_lang
from moe_asr.data.manifests import Utterance
from moe_asr.decoding.adaptations import AdaptationFolders, find_adaptations
from moe_asr.decoding.labels import check_labels
from moe_asr.decoding.routing_log import ROUTING, RoutingLog
from moe_asr.decoding.search import Search
from moe_asr.decoding.search_config import Scored, SearchConfig
from moe_asr.decoding.stream import HypothesisStream
from moe_asr.device import pick_device
from moe_asr.errors import SettingsChanged, UserError
from moe_asr.experts import adapter_identity, base_identity
from moe_asr.files import folder_bytes
from moe_asr.methods.adaptation import AdaptedRecogniser
from moe_asr.methods.pictures import routing_figure, save_figure
from moe_asr.methods.routing_monitor import expert_names
from moe_asr.models.folder import LoadedModel, load_model
from moe_asr.models.interface import Recogniser
from moe_asr.models.lengths import check_lengths
from moe_asr.models.precision import Precision, computing_in, lower_weights
from moe_asr.provenance import record
from moe_asr.quant import num_parameters
from moe_asr.scoring.hallucination import LOOP, repeats


@dataclass(frozen=True)
class DecodeConfig:
    """Decodes a manifest; a decode that was stopped goes on. Nothing of the model's architecture is said again.

    Args:
        model: model folder
        manifest: utterances to decode
        out_dir: decode folder to write
        adaptation: folder of experts trained on this model; in `exp/{speaker}/final` the name of each utterance's
            {speaker}, {accent} or {language} is put in
        search: how hypotheses are found
        global_route: where the domain comes from, if not as in training: posterior, label or uniform
        fallback: above 0, experts fade towards the base model where the domain is uncertain
        precision: fp32, or bf16 for the products inside the model
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
    precision: Precision = "fp32"
    max_duration: float = 120.0
    num_workers: int = 0
    on_change: Literal["error", "restart"] = "error"
    device: str = "auto"


def decode(config: DecodeConfig) -> None:
    """Runs the whole of it.

    Raises:
        UserError: see `load_model`, `find_adaptations`, `BatchLoader`, `check_lengths`, `check_labels`, `Search` and
            `HypothesisStream`; fallback or global_route is not for these experts, or the model was never trained
    """
    if config.fallback < 0:
        raise UserError(f"fallback must not be negative, but is {config.fallback}")
    if config.adaptation is None and (config.global_route or config.fallback):
        raise UserError("global_route and fallback are for experts; give their folder with --adaptation")
    device = pick_device(config.device)
    loaded = load_model(config.model)
    if not isinstance(loaded.model, Recogniser):
        raise UserError(f"{config.model} is no recogniser; give the model folder of one")
    if loaded.config.untrained:
        raise UserError(f"{config.model}: its projector is still random: train it, see bin/import_speech_llm")
    tunable = num_parameters(loaded.model, without=loaded.model.frozen_parts)
    folders = find_adaptations(config.adaptation, config.manifest) if config.adaptation else None
    adapted = folders.load(loaded.model) if folders else None
    loader = BatchLoader(
        DataConfig(
            [config.manifest],
            max_duration=config.max_duration,
            shuffle=False,
            unknown_domain="allow",
            domain_key=adapted.config.domain_key if adapted else "accent",
            num_workers=config.num_workers,
        ),
        loaded.tokens,
        adapted.config.domains if adapted else (),
        sample_rate=loaded.config.features.sample_rate,
    )
    check_lengths(loader.utterances, loaded.model, loaded.config.features)
    if adapted and adapted.domain_source(config.global_route, config.fallback) == "label":
        key, instead = adapted.config.domain_key, "global_route to posterior or uniform"
        domains = adapted.config.domains
        check_labels(loader.utterances, key, domains, config.manifest, config.adaptation, instead)
    (adapted or loaded.model).to(device).eval()
    whole_prefix = adapted is not None and adapted.needs_whole_prefix
    search = Search(loaded.model, config.search, loaded.tokens, cache=not whole_prefix)
    settings = _settings(config, loaded, adapted)
    lower_weights(loaded.model, config.precision)
    started = time.perf_counter()
    with _open_stream(config, settings, [u.id for u in loader.utterances]) as stream:
        if stream.complete:
            print(f"{config.out_dir}: decoded already, nothing to do")
            return
        log = RoutingLog(Path(config.out_dir), adapted)
        utterances = {u.id: u for u in loader.utterances}
        speed = _Speed()
        with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
            task = bar.add_task(f"decode {Path(config.manifest).name}", total=len(utterances))
            for batch in loader:  # cut alike in every run, so that an interrupted decode ends in the same bytes
                if stream.missing(batch.ids):
                    with speed.measured(utterances[name].seconds for name in batch.ids):
                        texts = _texts(config, search, loaded, adapted, batch.to(device))
                    log.write(batch.ids[0])
                    lines = [
                        _line(utterances[name], text, loaded.tokens.decode(text.tokens))
                        for name, text in zip(batch.ids, texts)
                    ]
                    stream.write(lines)
                bar.advance(task, len(batch))
        facts = {"seconds": time.perf_counter() - started, "seconds_per_utterance": speed.per_utterance}
        facts |= {sign: stream.count(sign) for sign in ("truncated", "looping")}
        routing = log.summary()
        if routing:
            save_figure(routing_figure(routing, expert_names(adapted)), Path(config.out_dir) / "routing.png")
        stream.finish({**_system(config, loaded, folders, adapted, tunable, routing), **facts, **record()})
        log.remove()
    cut_off = f", {facts['truncated']:,} cut off at the limit of tokens" if facts["truncated"] else ""
    loops = f", {facts['looping']:,} go round in circles" if facts["looping"] else ""
    speeds = f"{speed.factor:.0f} times faster than real time"
    print(f"{config.out_dir}: {len(utterances):,} utterances, {speeds}{cut_off}{loops}")


def _open_stream(config: DecodeConfig, settings: dict, ids: list[str]) -> HypothesisStream:
    try:
        return HypothesisStream(config.out_dir, settings, ids)
    except SettingsChanged:
        if config.on_change == "error":
            raise
        (Path(config.out_dir) / ROUTING).unlink(missing_ok=True)
        return HypothesisStream(config.out_dir, settings, ids, restart=True)


class _Speed:
    """Time from the audio of a batch to its texts; loading, and what an earlier run has decoded, do not count."""

    def __init__(self) -> None:
        self._elapsed, self._audio, self._utterances = 0.0, 0.0, 0

    @contextmanager
    def measured(self, seconds: Iterable[float]) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._elapsed += time.perf_counter() - started
        seconds = list(seconds)
        self._audio, self._utterances = self._audio + sum(seconds), self._utterances + len(seconds)

    @property
    def per_utterance(self) -> Optional[float]:
        return self._elapsed / self._utterances if self._utterances else None

    @property
    def factor(self) -> float:
        return self._audio / self._elapsed if self._utterances else 0.0


@torch.inference_mode()
def _texts(
    config: DecodeConfig, search: Search, loaded: LoadedModel, adapted: Optional[AdaptedRecogniser], batch: Batch
) -> list[Scored]:
    features_NTF, lengths_N = log_mel(batch.audio_NS, batch.audio_lengths_N, loaded.config.features)
    route = adapted.route(batch, lengths_N, config.global_route, config.fallback) if adapted else nullcontext()
    with route, computing_in(config.precision, batch.audio_NS.device):
        return [texts[0] for texts in search(features_NTF, lengths_N, batch, adapted and adapted.adapter)]


def _line(utterance: Utterance, found: Scored, text: str) -> dict:
    return {
        "id": utterance.id,
        "ref": utterance.raw_text or utterance.text,
        "hyp": text,
        "speaker": utterance.speaker,
        "accent": utterance.accent,
        "language": utterance.language,
        "duration": utterance.seconds,
        **({"truncated": True} if found.truncated else {}),
        **({"looping": True} if repeats(found.tokens) >= LOOP else {}),
    }


def _settings(config: DecodeConfig, loaded: LoadedModel, adapted: Optional[AdaptedRecogniser]) -> dict:
    """All that decides the hypotheses."""
    return {
        "model": base_identity(loaded.model),
        "model_config": to_plain(loaded.config),
        "tokens": loaded.tokens.digest,
        "adaptation": adapter_identity(adapted.adapter) if adapted else None,
        "classifier": base_identity(adapted.classifier) if adapted and adapted.classifier else None,
        "manifest": hashlib.sha256(Path(config.manifest).read_bytes()).hexdigest(),
        "search": to_plain(config.search),
        **({"lang": read_lang(config.search.lang).digest} if config.search.lang else {}),
        "global_route": config.global_route,
        "fallback": config.fallback,
        "precision": config.precision,
        "max_duration": config.max_duration,
    }


def _system(
    config: DecodeConfig,
    loaded: LoadedModel,
    folders: Optional[AdaptationFolders],
    adapted: Optional[AdaptedRecogniser],
    tunable: int,
    routing: Optional[dict],
) -> dict:
    """Facts of the system for the tables, with one adaptation where there are several.

    The total is what full fine-tuning would train. Routers count as trained, the accent recogniser does not.
    """
    experts = adapted.adapter.num_parameters() if adapted else 0
    one = experts // adapted.adapter.members if adapted else 0
    return {
        "model": config.model,
        "adapter": config.adaptation,
        "trainable_parameters": one if adapted else tunable if loaded.config.finetuned else 0,
        "total_parameters": tunable,
        "model_bytes": folder_bytes(config.model),
        "adaptation_bytes": folders.bytes_of_one if folders else None,
        "mean_active_experts": routing["mean_active_experts"] if routing else None,
        "routing": routing,
        "normaliser": loaded.config.normaliser,
    }

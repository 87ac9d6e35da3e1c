"""A decode from its configuration: a model, perhaps an adaptation, and a manifest become a decode folder."""

from __future__ import annotations

import hashlib
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Optional

from rich.console import Console
from rich.progress import Progress

from moe_asr.config import to_plain
from moe_asr.data.batches import BatchLoader, DataConfig
from moe_asr.data.lang import read_lang
from moe_asr.data.languages import check_languages
from moe_asr.data.manifests import Utterance
from moe_asr.decoding.batch_decoder import BatchDecoder, load_recogniser, signs
from moe_asr.decoding.labels import check_labels
from moe_asr.decoding.prompt_language import LABEL
from moe_asr.decoding.routing_log import ROUTING, RoutingLog
from moe_asr.decoding.search_config import Scored, SearchConfig
from moe_asr.decoding.stream import HypothesisStream
from moe_asr.device import pick_device
from moe_asr.errors import SettingsChanged, UserError
from moe_asr.experts import adapter_identity, base_identity
from moe_asr.files import folder_bytes
from moe_asr.methods.adaptation import AdaptedRecogniser
from moe_asr.methods.adaptations import AdaptationFolders, find_adaptations
from moe_asr.methods.encoder_cache import use_encoder_cache
from moe_asr.methods.pictures import routing_figure, save_figure
from moe_asr.methods.routes import Route, RouteOptions
from moe_asr.methods.routing_monitor import expert_names
from moe_asr.models.folder import LoadedModel
from moe_asr.models.lengths import check_lengths
from moe_asr.models.precision import Precision
from moe_asr.provenance import record
from moe_asr.quant import num_parameters
from moe_asr.signals import StopSignals


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
        language: that multilingual models are told: label (that of each utterance), detect, or a code such as de
        global_route: where the domain comes from, if not as in training: posterior, label, uniform, model or router
        beta: weight of the true domain where it comes from the label, if not as in training
        best: the experts of the most probable domain get all the weight
        fallback: above 0, experts fade towards the base model where the domain is uncertain
        precision: fp32, or bf16 for the products inside the model
        encoder_cache: folder for the states of the encoder, see bin/train
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
    language: str = LABEL
    global_route: Optional[Route] = None
    beta: Optional[float] = None
    best: bool = False
    fallback: float = 0.0
    precision: Precision = "fp32"
    encoder_cache: str = ""
    max_duration: float = 120.0
    num_workers: int = 0
    on_change: Literal["error", "restart"] = "error"
    device: str = "auto"


def decode(config: DecodeConfig) -> None:
    """Runs the whole of it.

    Raises:
        KeyboardInterrupt, SystemExit: a signal came, see `signals`; the batch was finished and saved.
        UserError: see `load_recogniser`, `find_adaptations`, `BatchLoader`, `check_lengths`, `check_labels`, `Search`
            and `HypothesisStream`; fallback or global_route is not for these experts
    """
    options = RouteOptions(config.global_route, config.fallback, config.beta, config.best)
    if config.adaptation is None and options.any:
        raise UserError("global_route, beta, best and fallback are for experts; give their folder with --adaptation")
    device = pick_device(config.device)
    loaded = load_recogniser(config.model)
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
    codes = getattr(loaded.model, "languages", {})
    if codes and config.language == LABEL:
        check_languages(loader.utterances, codes, "set language to detect or to one of them")
    if adapted and adapted.domain_source(options) == "label":
        key, instead = adapted.config.domain_key, "global_route to posterior or uniform"
        domains = adapted.config.domains
        check_labels(loader.utterances, key, domains, config.manifest, config.adaptation, instead)
    if config.encoder_cache:
        use_encoder_cache(adapted or loaded.model, config.encoder_cache)
    find_texts = BatchDecoder(loaded, adapted, config.search, device, options, config.precision, config.language)
    settings = _settings(config, loaded, adapted)
    started = time.perf_counter()
    signals = StopSignals()
    with _open_stream(config, settings, [u.id for u in loader.utterances]) as stream, signals:
        if stream.complete:
            print(f"{config.out_dir}: decoded already, nothing to do")
            return
        log = RoutingLog(Path(config.out_dir), adapted)
        utterances = {u.id: u for u in loader.utterances}
        with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
            task = bar.add_task(f"decode {Path(config.manifest).name}", total=len(utterances))
            for batch in loader:  # cut alike in every run, so that an interrupted decode ends in the same bytes
                if stream.missing(batch.ids):
                    texts = find_texts(batch, [utterances[name].seconds for name in batch.ids])
                    log.write(batch.ids[0])
                    lines = [
                        _line(utterances[name], text, loaded.tokens.decode(text.tokens))
                        for name, text in zip(batch.ids, texts)
                    ]
                    stream.write(lines)
                bar.advance(task, len(batch))
                if signals.received:
                    break
        if signals.received and (left := len(stream.missing(list(utterances)))):
            print(
                f"stopped by {signals.received.name}, {left:,} of {len(utterances):,} utterances are left", flush=True
            )
            signals.leave()
        facts = {"seconds": time.perf_counter() - started, "seconds_per_utterance": find_texts.speed.per_utterance}
        facts |= {sign: stream.count(sign) for sign in ("truncated", "looping")}
        routing = log.summary()
        if routing:
            save_figure(routing_figure(routing, expert_names(adapted)), Path(config.out_dir) / "routing.png")
        stream.finish({**_system(config, loaded, folders, adapted, tunable, routing), **facts, **record()})
        log.remove()
    cut_off = f", {facts['truncated']:,} cut off at the limit of tokens" if facts["truncated"] else ""
    loops = f", {facts['looping']:,} go round in circles" if facts["looping"] else ""
    print(f"{config.out_dir}: {len(utterances):,} utterances, {find_texts.speed}{cut_off}{loops}")


def _open_stream(config: DecodeConfig, settings: dict, ids: list[str]) -> HypothesisStream:
    try:
        return HypothesisStream(config.out_dir, settings, ids)
    except SettingsChanged:
        if config.on_change == "error":
            raise
        (Path(config.out_dir) / ROUTING).unlink(missing_ok=True)
        return HypothesisStream(config.out_dir, settings, ids, restart=True)


def _line(utterance: Utterance, found: Scored, text: str) -> dict:
    return {
        "id": utterance.id,
        "ref": utterance.raw_text or utterance.text,
        "hyp": text,
        "speaker": utterance.speaker,
        "accent": utterance.accent,
        "language": utterance.language,
        "duration": utterance.seconds,
        **({"detected": found.language} if found.language else {}),
        **signs(found),
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
        **({"language": config.language} if config.language != LABEL else {}),
        "global_route": config.global_route,
        **({"beta": config.beta} if config.beta is not None else {}),
        **({"best": True} if config.best else {}),
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

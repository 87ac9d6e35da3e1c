"""A training run from its configuration: data, model and experts, trained and saved.

`exp_dir` gets `config.yaml` (resolved), checkpoints and logs (see `Trainer`), and `final/`: a model folder, or for an
adaptation everything but the frozen recogniser.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal, Optional

import torch
from torch import nn

from moe_asr.config import save_config, to_plain
from moe_asr.data.batches import Batch, BatchLoader, DataConfig
from moe_asr.data.features import FeatureConfig, SpecAugmentConfig, log_mel, spec_augment
from moe_asr.data.languages import check_languages
from moe_asr.data.manifests import domain_names, read_manifests
from moe_asr.data.plan import Share
from moe_asr.data.tokens import Tokens
from moe_asr.device import pick_device
from moe_asr.errors import UserError
from moe_asr.experts import adapter_identity, base_identity
from moe_asr.methods.adapt import adapt, load_adapted
from moe_asr.methods.adaptation import AdaptationConfig, AdaptedRecogniser
from moe_asr.methods.distillation import DistillationConfig, Distiller
from moe_asr.methods.encoder_cache import use_encoder_cache
from moe_asr.methods.routing_monitor import RoutingMonitor
from moe_asr.models.build import ModelConfig, build_model, complete_config
from moe_asr.models.encoder_import import ReadEncoder, put_encoder, read_encoder
from moe_asr.models.folder import FolderConfig, load_model, open_frozen, save_model
from moe_asr.models.interface import Loss, Model, Recogniser
from moe_asr.models.lengths import check_lengths
from moe_asr.models.precision import lower_weights
from moe_asr.provenance import record
from moe_asr.training.config import TrainConfig
from moe_asr.training.distil import make_distiller
from moe_asr.training.distributed import processes, rank, world_size
from moe_asr.training.loop import Trainer
from moe_asr.training.restart import is_finished, run_folder, run_identity, start_trainer
from moe_asr.training.run_state import Progress
from moe_asr.training.sharding import check_shardable, shard_frozen


@dataclass(frozen=True)
class RunConfig:
    """Trains a model from scratch (`model`), fine-tunes one (`init`), or trains experts on a frozen one (`init` and
    `adaptation` or `init_adaptation`).

    Args:
        exp_dir: folder of the run; a run that was stopped there goes on
        data: training data
        valid: validation data
        model: what to train from scratch
        init: model folder to start from
        init_encoder: model folder, or checkpoint of `transformers`, whose encoder a model trained from scratch starts
            with; a domain_classifier that has none of its own takes it over with its features
        frozen: regular expressions found in the names of parameters that are not fine-tuned
        adaptation: experts to train on the frozen model
        init_adaptation: adaptation folder with whose experts and routers to go on
        distillation: teachers of the experts; unset for the transcripts alone
        train_only: which part of an adaptation to train: experts, routers or all
        tokens: folder of the token set, for a recogniser trained from scratch
        features: input of a model trained from scratch
        normaliser: name of the normaliser that the transcripts went through
        augment: SpecAugment; unset for none
        train: the loop and its optimiser
        on_change: what to do with a run in exp_dir that had other settings, data or models: error, or restart, which
            throws it away
        encoder_cache: folder for the states of a frozen encoder, which then encodes each utterance (at each speed) once
            only; runs on the same encoder may share it
        gradient_checkpointing: recompute activations in the backward pass, to save memory
        shard_frozen: with several processes, each holds only its share of the layers of a speech LLM's frozen language
            model (FSDP of torch) and gets the others when it needs them
        device: cpu, cuda, cuda:1, ...; auto takes a GPU if there is one
    """

    exp_dir: str
    data: DataConfig
    valid: DataConfig
    model: Optional[ModelConfig] = None
    init: Optional[str] = None
    init_encoder: Optional[str] = None
    frozen: tuple[str, ...] = ()
    adaptation: Optional[AdaptationConfig] = None
    init_adaptation: Optional[str] = None
    distillation: Optional[DistillationConfig] = None
    train_only: Literal["all", "experts", "routers"] = "all"
    tokens: Optional[str] = None
    features: FeatureConfig = field(default_factory=FeatureConfig)
    normaliser: str = "none"
    augment: Optional[SpecAugmentConfig] = None
    train: TrainConfig = field(default_factory=TrainConfig)
    on_change: Literal["error", "restart"] = "error"
    encoder_cache: str = ""
    gradient_checkpointing: bool = False
    shard_frozen: bool = False
    device: str = "auto"


def train(config: RunConfig) -> Progress:
    """Runs the whole of it, alone or with other processes (see `distributed`). Returns how far it came.

    Raises:
        UserError: the configuration contradicts itself or the data, or see `Trainer`
    """
    with processes():
        return _train(config)


def _train(config: RunConfig) -> Progress:
    device = pick_device(config.device)
    torch.manual_seed(config.train.seed)
    with open_frozen(config.init) as frozen:
        folder, tokens, model = _start(config)
        model, trainable = _prepare(config, model)
        if config.shard_frozen:
            check_shardable(model)
        if config.encoder_cache and config.augment is not None:
            raise UserError("encoder_cache keeps states of what is heard again, and augment changes it each time")
        model.to(device).train()
        with run_folder(config) as exp_dir:
            trainer = _make_trainer(config, model, folder, tokens, trainable)
            kept = is_finished(config)  # of the same model and data, or there would be no trainer for it
            if rank() == 0 and not kept:
                save_config(_resolved(config, folder, model), exp_dir / "config.yaml")
            base = _lower_frozen(model, config)
            if config.shard_frozen:
                trainer.updater.idle = shard_frozen(model)
            if config.encoder_cache:
                use_encoder_cache(model, config.encoder_cache)
            trainer.train()
            if rank() != 0 or kept:  # a file that is there already stays the same file, byte for byte
                pass
            elif isinstance(model, AdaptedRecogniser):
                model.save(exp_dir / "final", {"base": config.init, **record()}, base)
            else:
                finetuned = config.init is not None and not folder.untrained
                folder = replace(folder, finetuned=finetuned, untrained=False)
                save_model(exp_dir / "final", model, folder, tokens, frozen_from=frozen)
    return trainer.progress


def _prepare(config: RunConfig, model: Model) -> tuple[nn.Module, list[str]]:
    """The module to train, with experts where they are asked for, and the names of what is declared to train."""
    if config.adaptation is None and config.init_adaptation is None:
        if config.train_only != "all":
            raise UserError("train_only is for experts; use frozen for parts of a model")
        if config.distillation is not None:
            raise UserError("distillation teaches experts: give adaptation (fresh ones) or init_adaptation")
        model.set_gradient_checkpointing(config.gradient_checkpointing)
        return model, _unfreeze(model, config.frozen)
    if not isinstance(model, Recogniser):
        raise UserError(f"{config.init} is no recogniser; experts go on a recogniser")
    if config.frozen:
        raise UserError("frozen is for fine-tuning: experts leave all of the model as it is; see train_only")
    if config.adaptation is None:
        adapted = load_adapted(model, config.init_adaptation)
    else:
        adapted = adapt(model, replace(config.adaptation, domain_key=config.data.domain_key))
    adapted.adapter.train_only(config.train_only)
    adapted.adapter.check_trainable()
    model.set_gradient_checkpointing(config.gradient_checkpointing, adapted.adapter.checkpoint_context_fn)
    declared = {id(parameter) for parameter in adapted.adapter.trained_parameters()}
    return adapted, [name for name, parameter in adapted.named_parameters() if id(parameter) in declared]


def _unfreeze(model: Model, frozen: tuple[str, ...]) -> list[str]:
    """Has all parameters trained but those that match, and those that always stay; returns their names."""
    names = [name for name, _ in model.requires_grad_(True).named_parameters()]
    names = [name for name in names if not name.startswith(tuple(model.frozen_parts))]
    for pattern in frozen:
        matches = {name for name in names if re.search(pattern, name)}
        if not matches:
            raise UserError(f"frozen: '{pattern}' is found in no name of a parameter, such as {names[0]}")
        names = [name for name in names if name not in matches]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    return names


def _lower_frozen(model: nn.Module, config: RunConfig) -> Optional[str]:
    """Puts frozen parts into the precision of the products; returns the identity that the recogniser had before, if it
    cannot be found later."""
    recogniser = model.recogniser if isinstance(model, AdaptedRecogniser) else model
    lower = config.train.precision != "fp32" and recogniser.frozen_parts
    if not lower and not config.shard_frozen:
        return None
    identity = base_identity(recogniser)
    if lower:
        lower_weights(recogniser, config.train.precision, recogniser.frozen_parts)
    return identity


def _make_trainer(
    config: RunConfig, model: nn.Module, folder: FolderConfig, tokens: Optional[Tokens], trainable: list[str]
) -> Trainer:
    adapted = isinstance(model, AdaptedRecogniser)
    domains = model.config.domains if adapted else getattr(model, "domains", ())
    rate = folder.features.sample_rate
    make = partial(BatchLoader, tokens=tokens, domains=domains, sample_rate=rate, unreadable="leave_out")
    train_loader = make(config.data, share=Share(rank(), world_size(), config.train.accumulate))
    valid_loader = make(config.valid, share=Share(rank(), world_size(), world_size()))

    recogniser = model.recogniser if adapted else model
    for loader in (train_loader, valid_loader) if isinstance(recogniser, Recogniser) else ():
        check_lengths(loader.utterances, recogniser, folder.features, tokens, min(loader.config.speed_factors))
        if languages := getattr(recogniser, "languages", {}):
            check_languages(loader.utterances, languages, "leave these utterances out")

    computed: Callable[..., Loss] = model
    if config.distillation is not None:
        if config.shard_frozen:
            raise UserError("shard_frozen and distillation do not go together yet: leave one of them out")
        computed = make_distiller(config, model, folder, train_loader, valid_loader)

    def forward(batch: Batch, generator: Optional[torch.Generator]) -> Loss:
        features_NTF, lengths_N = log_mel(batch.audio_NS, batch.audio_lengths_N, folder.features)
        if config.augment is not None and generator is not None:
            features_NTF = spec_augment(features_NTF, lengths_N, config.augment, generator)
        return computed(features_NTF, lengths_N, batch)

    def batches(epoch: int, start: int) -> BatchLoader:
        train_loader.seek(epoch, start)
        return train_loader

    start = partial(
        Trainer,
        model,
        forward,
        batches,
        config.train,
        config.exp_dir,
        trainable=trainable,
        valid_batches=lambda: valid_loader,
        identity={
            **_identity(config, model, folder, tokens),
            "teachers": computed.identity if isinstance(computed, Distiller) else None,
        },
        seconds_of=lambda batch: float(batch.audio_lengths_N.sum()) / rate,
        monitors=[RoutingMonitor(model, Path(config.exp_dir) / "routing")] if adapted else [],
    )
    return start_trainer(config, start)


def _resolved(config: RunConfig, folder: FolderConfig, model: nn.Module) -> RunConfig:
    """The configuration with all that the data decided filled in."""
    if config.adaptation is not None:
        return replace(config, adaptation=model.config)
    return config if config.model is None else replace(config, model=folder.model, features=folder.features)


def _identity(config: RunConfig, model: nn.Module, folder: FolderConfig, tokens: Optional[Tokens]) -> dict:
    manifests = [*config.data.manifests, *config.valid.manifests]
    without = replace(config, data=replace(config.data, num_workers=0), valid=replace(config.valid, num_workers=0))
    initial = config.init_adaptation or config.adaptation is not None and config.adaptation.initial_experts
    return {
        **run_identity(without, manifests),
        "initial_model": to_plain(folder) if config.init else None,
        "initial_weights": base_identity(model) if config.init or config.init_encoder else None,
        "initial_experts": adapter_identity(model.adapter) if initial else None,
        "token_set": tokens.digest if tokens else None,
    }


def _start(config: RunConfig):
    """What belongs to the model, its tokens, and the model itself, fresh or loaded."""
    if (config.model is None) == (config.init is None):
        raise UserError("give either model (to train from scratch) or init (a model folder to start from)")
    if config.adaptation is not None and config.init_adaptation is not None:
        raise UserError("adaptation begins with fresh experts, init_adaptation goes on with others; give one of them")
    if config.init is not None:
        if config.tokens is not None or config.features != FeatureConfig():
            raise UserError(
                "tokens and features are those of the model that init names; leave them out (import_whisper --tokens "
                "replaces the tokens of a Whisper)"
            )
        loaded = load_model(config.init)
        experts = config.adaptation is not None or config.init_adaptation is not None
        if experts and loaded.config.untrained:
            raise UserError(f"{config.init} has weights that were never trained: train it without experts first")
        if config.init_encoder is not None:
            raise UserError("init starts with a whole model, init_encoder with an encoder; give one of them")
        if loaded.config.quantisation is not None and not experts and not loaded.model.frozen_parts:
            raise UserError(
                f"{config.init} is quantised and cannot be fine-tuned as a whole: train experts on it (adaptation), or "
                "fine-tune the model that it was made from and quantise that"
            )
        return loaded.config, loaded.tokens, loaded.model
    if config.adaptation is not None or config.init_adaptation is not None:
        raise UserError("experts go on a trained model: give init, a model folder")
    if config.model.speech_llm is not None:
        raise UserError("a speech_llm is trained from init, a folder that bin/import_speech_llm makes")
    classifier = config.model.domain_classifier is not None
    if classifier == (config.tokens is not None):
        raise UserError("a recogniser needs tokens, the folder of its token set" if not classifier else
                        "a domain_classifier has no tokens; leave them out")  # fmt: skip
    tokens = None if classifier else Tokens(config.tokens)
    names = domain_names(read_manifests(config.data.manifests), config.data.domain_key) if classifier else ()
    size, languages = (tokens.size, tokens.languages) if tokens else (0, {})
    source = read_encoder(config.init_encoder) if config.init_encoder is not None else None
    if source is not None and classifier and config.model.domain_classifier.encoder is None:
        config = _with_encoder(config, source)
    model_config = complete_config(config.model, config.features.num_mels, size, names, languages)
    folder, model = FolderConfig(model_config, config.features, config.normaliser), build_model(model_config)
    if source is not None:
        put_encoder(source, model.encoder, config.features, config.init_encoder)
    return folder, tokens, model


def _with_encoder(config: RunConfig, source: ReadEncoder) -> RunConfig:
    """With the encoder and the features that a domain classifier takes over."""
    classifier = replace(config.model.domain_classifier, encoder=source.config)
    features = source.features if config.features == FeatureConfig() else config.features
    return replace(config, model=replace(config.model, domain_classifier=classifier), features=features)

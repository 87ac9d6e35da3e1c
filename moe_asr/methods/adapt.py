"""Experts for a recogniser: fresh ones, or from the folders of adaptations."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Mapping, Optional

from torch import Tensor

from moe_asr.config import from_plain, load_config
from moe_asr.errors import UserError
from moe_asr.experts import (
    ExpertSpec,
    attach,
    base_identity,
    check_base,
    load_adapter,
    read_adapter_info,
    read_adapter_tensors,
    stack_adapters,
)
from moe_asr.methods.adaptation import AdaptationConfig, AdaptedRecogniser
from moe_asr.methods.routes import language_columns
from moe_asr.methods.saml import saml_specs
from moe_asr.methods.streams import split_by_stream
from moe_asr.models.domain_classifier import DomainClassifier
from moe_asr.models.folder import LoadedModel, load_model
from moe_asr.models.interface import Recogniser


def adapt(recogniser: Recogniser, config: AdaptationConfig) -> AdaptedRecogniser:
    """Fresh experts on a recogniser.

    Raises:
        UserError: experts and domains do not correspond, or see `attach`
    """
    classifier = _load_classifier(config.domain_classifier)
    names = config.domains or (classifier.model.domains if classifier else ())
    if classifier and tuple(names) != tuple(classifier.model.domains):
        raise UserError(
            f"the domains are {', '.join(names)}, but the classifier knows {', '.join(classifier.model.domains)}, in "
            "this order"
        )
    if config.base_domain is not None and config.base_domain not in names:
        raise UserError(f"base_domain {config.base_domain} is none of the domains {', '.join(names) or '(none given)'}")
    if (config.experts is None) == (config.saml is None):
        raise UserError("adaptation: give either experts or saml")
    experts = config.experts
    if experts is not None and experts.targets == ("default",):
        experts = dataclasses.replace(experts, targets=type(recogniser).default_targets)
    if experts is not None:
        specs = split_by_stream(recogniser, experts)
    else:
        specs = saml_specs(config.saml, type(recogniser).attention_targets)
    num_experts = specs[0].num_experts
    needs = num_experts > 1 and any(spec.router.needs_domains for spec in specs)
    if config.base_domain is not None and not needs:
        raise UserError("base_domain is for routers that see the domain: set experts.router.route, num_experts above 1")
    served = [name for name in names if name != config.base_domain]
    if needs and len(served) != num_experts:
        raise UserError(
            f"there are {num_experts} experts for {len(served)} domains "
            f"({', '.join(served) or 'no names given'}); set experts.num_experts, or domains"
        )
    if needs and config.global_route == "posterior" and classifier is None:
        raise UserError("global_route posterior needs a domain_classifier; give its model folder, or route by label")
    routed = config.global_route == "router"
    if routed and (not needs or config.base_domain is not None):
        raise UserError("global_route router is for several experts whose routers see the domain, and no base_domain")
    if needs and config.global_route == "model":
        language_columns(getattr(recogniser, "languages", {}), names)
    if config.initial_experts and len(config.initial_experts) != num_experts:
        raise UserError(f"initial_experts names {len(config.initial_experts)} folders for {num_experts} experts")
    identity = base_identity(recogniser) if config.initial_experts else ""
    loras = [_read_lora(folder, identity, specs[0].scale) for folder in config.initial_experts]
    config = dataclasses.replace(config, domains=tuple(names), experts=experts)
    adapter = attach(recogniser, specs, domain_width=recogniser.encoder.width if routed else 0)
    for index, (folder, lora) in enumerate(zip(config.initial_experts, loras)):
        try:
            adapter.set_expert(index, lora)
        except UserError as error:
            adapter.detach()
            raise UserError(f"initial_experts: {folder}: {error}") from None
    return AdaptedRecogniser(recogniser, adapter, config, classifier)


def load_adapted(recogniser: Recogniser, folder: str | Path) -> AdaptedRecogniser:
    """The inverse of `AdaptedRecogniser.save`; exact, see `load_adapter`."""
    folder = Path(folder)
    config = read_adaptation(folder)
    classifier = folder / "domain_classifier"
    loaded = _load_classifier(str(classifier) if classifier.is_dir() else None)
    adapted = AdaptedRecogniser(recogniser, load_adapter(recogniser, folder / "adapter"), config, loaded)
    return adapted.eval()


def load_stacked(recogniser: Recogniser, folders: Mapping[str, Path], key: str) -> AdaptedRecogniser:
    """Several adaptations of one kind at once: each utterance is served by the one of its own label.

    Args:
        folders: adaptation folder for each label
        key: what is labelled: speaker, accent or language

    Raises:
        UserError: they are of different kinds or use a domain classifier; see also `stack_adapters`
    """
    configs = {}
    for label, folder in folders.items():
        config = read_adaptation(folder)
        configs[label] = dataclasses.replace(config, initial_experts=())
        if (folder / "domain_classifier").is_dir():
            raise UserError(f"{folder} has a domain classifier; such adaptations are decoded one at a time")
    first = next(iter(folders))
    for label, config in configs.items():
        if config != configs[first]:
            raise UserError(f"{folders[first]} and {folders[label]} differ in their adaptation.yaml: decode them apart")
    adapter = stack_adapters(recogniser, [folder / "adapter" for folder in folders.values()])
    return AdaptedRecogniser(recogniser, adapter, configs[first], members=tuple(folders), member_key=key).eval()


def read_adaptation(folder: str | Path) -> AdaptationConfig:
    """What `adaptation.yaml` says.

    Raises:
        UserError: no adaptation there
    """
    folder = Path(folder)
    if not (folder / "adaptation.yaml").is_file():
        raise UserError(f"no adaptation in {folder}: it needs adaptation.yaml and adapter/")
    return load_config(AdaptationConfig, folder / "adaptation.yaml")


def _read_lora(folder: str, identity: str, scale: float) -> dict[str, tuple[Tensor, Tensor]]:
    """The one expert of an adaptation folder on the base of this identity, layer by layer."""
    adapter = Path(folder) / "adapter"
    if not adapter.is_dir():
        raise UserError(f"initial_experts: no adaptation in {folder}")
    info = read_adapter_info(adapter)
    check_base(info, folder, identity)
    theirs = {from_plain(ExpertSpec, spec).scale for spec in info["specs"]}
    if theirs != {scale}:
        raise UserError(
            f"initial_experts: {folder} has alpha / rank {min(theirs):g}, the experts here {scale:g}: train one anew"
        )
    state = read_adapter_tensors(adapter)
    layers = [name.removesuffix(".A") for name in state if name.endswith(".A")]
    if any(len(state[f"{name}.A"]) != 1 for name in layers):
        raise UserError(f"initial_experts: {folder} has several experts; give one LoRA for each expert")
    return {name: (state[f"{name}.A"][0], state[f"{name}.B"][0]) for name in layers}


def _load_classifier(folder: Optional[str]) -> Optional[LoadedModel]:
    if folder is None:
        return None
    loaded = load_model(folder)
    if not isinstance(loaded.model, DomainClassifier):
        raise UserError(f"{folder} is no domain classifier")
    return loaded

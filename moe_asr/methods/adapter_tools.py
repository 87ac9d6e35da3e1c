"""What one wants to know of trained experts, and other forms of them: merged, and in the format of PEFT."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Optional

import torch

from moe_asr.config import from_plain
from moe_asr.errors import UserError
from moe_asr.experts import ExpertSpec, base_identity, export_expert, read_adapter_info, read_adapter_tensors
from moe_asr.experts.peft_format import import_expert, read_lora
from moe_asr.files import folder_bytes
from moe_asr.methods.adapt import adapt, load_adapted, read_adaptation
from moe_asr.methods.adaptation import AdaptationConfig, AdaptedRecogniser
from moe_asr.methods.adapter_config import ExportConfig, ImportConfig, MergeConfig, ShowConfig
from moe_asr.methods.fuse import expert_domains, expert_number, known_experts
from moe_asr.methods.language_experts import FUSION
from moe_asr.models.folder import LoadedModel, load_model, open_frozen, save_model
from moe_asr.models.interface import Recogniser
from moe_asr.models.whisper import Whisper
from moe_asr.models.whisper_export import PREFIX, export_whisper
from moe_asr.provenance import record


def show(config: ShowConfig) -> None:
    """Prints what an adaptation is.

    Raises:
        UserError: it is none, or damaged
    """
    folder = Path(config.adaptation)
    adaptation, info = read_adaptation(folder), read_adapter_info(folder / "adapter")
    specs, about = [from_plain(ExpertSpec, spec) for spec in info["specs"]], info.get("about", {})
    first = specs[0]
    ranks = ", ".join(str(rank) for rank in dict.fromkeys(spec.rank for spec in specs))
    many = f"{first.num_experts} expert{'s' * (first.num_experts > 1)}"
    print(f"{folder}: {many} of rank {ranks}, scale {first.scale:g}, {first.mixing} mixing")
    domains = expert_domains(adaptation, first.num_experts)
    if domains:
        print(f"domains: {', '.join(domains)} ({adaptation.domain_key}), told by {adaptation.global_route}")
    if adaptation.base_domain:
        print(f"left to the base: {adaptation.base_domain}")
    if (folder / "domain_classifier").is_dir():
        print(f"domain classifier: {', '.join(adaptation.domains)}")
    for spec in specs:
        router = spec.router
        selection = f"{router.select} {router.top_k}" if router.select == "topk" else router.select
        print(f"router on the stream {spec.stream}: {router.route}, {selection}")
    print(f"{info['parameters']:,} parameters, {folder_bytes(folder):,} bytes")
    for layer, shape in _shapes(folder):
        print(f"  {layer}: {shape}")
    base = about.get("base")
    print(f"base: {info['base'][:12]}{f', which was {base}' if base else ''}")
    if config.model:
        same = base_identity(load_model(config.model).model) == info["base"]
        print(f"{config.model} {'is' if same else 'is NOT'} its base")
    made = [f"{name} {version}" for name, version in info.get("versions", {}).items()]
    made += [f"{name} {about[name]}" for name in ("git", "date", "command") if name in about]
    print(f"made with: {', '.join(made)}")


def merge(config: MergeConfig) -> None:
    """Writes a plain model, base and experts in one.

    Raises:
        UserError: several experts without weights for them, a base in 4 bits, or another base; see also `load_adapted`
            and `export_whisper`
    """
    loaded = load_model(config.model)
    adapted = load_adapted(_recogniser(loaded, config.model), config.adaptation)
    weights = _weights(adapted, config.adaptation, config.weights, config.expert)
    merged = adapted.adapter.merged(weights)
    result = LoadedModel(merged, dataclasses.replace(loaded.config, finetuned=True), loaded.tokens)
    if config.format == "transformers":
        notes = export_whisper(config.out_dir, result)
    else:
        frozen = tuple(loaded.model.frozen_parts)
        changed = any(name.startswith(frozen) for name in adapted.adapter.layers) if frozen else True
        with open_frozen(None if changed else config.model) as file:
            save_model(config.out_dir, merged, result.config, loaded.tokens, file)
        notes = []
    print(f"{config.out_dir}: {config.model} with {config.adaptation} merged into it")
    for note in notes:
        print(f"note: {note}")


def export(config: ExportConfig) -> None:
    """Writes one expert in the format of PEFT.

    Raises:
        UserError: several experts and none named, routers that a plain LoRA has not; see also `load_adapted`
    """
    loaded = load_model(config.model)
    adapted = load_adapted(_recogniser(loaded, config.model), config.adaptation)
    index = _expert(adapted, config.adaptation, config.expert)
    export_expert(adapted.adapter, index, config.out_dir, layer_prefix(loaded))
    print(f"{config.out_dir}: expert {index} of {config.adaptation} in the format of PEFT")


def import_lora(config: ImportConfig) -> None:
    """Makes an adaptation of one expert from a LoRA in the format of PEFT.

    Raises:
        UserError: no such LoRA, one of another model's layers, or more than a plain LoRA; see `read_lora`
    """
    loaded = load_model(config.model)
    recogniser, prefix = _recogniser(loaded, config.model), layer_prefix(loaded)
    lora = read_lora(config.lora, prefix)
    linear = {name for name, module in recogniser.named_modules() if isinstance(module, torch.nn.Linear)}
    if unknown := sorted(set(lora.matrices) - linear):
        raise UserError(f"{config.lora} is of another model: {config.model} has no linear layer {unknown[0]}")
    targets = tuple(sorted(lora.matrices))
    experts = ExpertSpec(targets, 1, lora.rank, lora.alpha, router=FUSION)
    adapted = adapt(recogniser, AdaptationConfig(experts, domain_key=config.domain_key, global_route="label"))
    import_expert(adapted.adapter, 0, config.lora, prefix)
    adapted.save(config.out_dir, {"base": config.model, "imported": config.lora, **record()})
    print(f"{config.out_dir}: {config.lora} as an adaptation of {config.model}")


def layer_prefix(loaded: LoadedModel) -> str:
    """What stands before our names of layers in the model of transformers that ours was taken from."""
    return PREFIX if isinstance(loaded.model, Whisper) else ""


def _recogniser(loaded: LoadedModel, name: str) -> Recogniser:
    if not isinstance(loaded.model, Recogniser):
        raise UserError(f"{name} is no recogniser; give the model folder of one")
    return loaded.model


def _expert(adapted: AdaptedRecogniser, folder: str, wanted: Optional[str]) -> int:
    """Number of the expert that is named by its number or domain, or the only one."""
    count = adapted.adapter.num_experts
    if wanted is not None:
        return expert_number(folder, adapted.config, count, wanted)
    if count > 1:
        raise UserError(
            f"{folder} has {count} experts: choose one with --expert, {known_experts(adapted.config, count)}"
        )
    return 0


def _weights(
    adapted: AdaptedRecogniser, folder: str, weights: Optional[list[float]], expert: Optional[str]
) -> list[float]:
    count = adapted.adapter.num_experts
    if weights is not None:
        if expert is not None:
            raise UserError("give weights or expert, not both")
        if len(weights) != count:
            raise UserError(f"{folder} has {count} expert{'s' * (count > 1)}, but {len(weights)} weights are given")
        return weights
    if count > 1 and expert is None:
        raise UserError(f"{folder} has {count} experts: give their weights, or choose one with --expert")
    index = _expert(adapted, folder, expert)
    return [float(number == index) for number in range(count)]


def _shapes(folder: Path) -> list[tuple[str, str]]:
    """Kinds of layers and how many there are of each, such as encoder ... q_proj: 4."""
    kinds: Counter[str] = Counter()
    for name in read_adapter_tensors(folder / "adapter"):
        if name.endswith(".A"):
            parts = name.removesuffix(".A").split(".")
            kinds[".".join("*" if part.isdigit() else part for part in parts)] += 1
        elif not name.endswith(".B"):
            kinds["routers"] += 1
    return [(kind, f"{count}" + (" tensors" if kind == "routers" else "")) for kind, count in kinds.items()]

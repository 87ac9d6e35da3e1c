"""Static fusion: several LoRAs, from adaptation folders, into an adaptation of one expert."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from moe_asr.config import save_config
from moe_asr.errors import UserError
from moe_asr.experts import ExpertSpec, read_adapter_info, read_adapter_tensors
from moe_asr.experts.adapter_files import write_adapter
from moe_asr.experts.fuse import Fused, Lora, fuse, read_loras
from moe_asr.files import atomic_folder
from moe_asr.methods.adapt import read_adaptation
from moe_asr.methods.adaptation import AdaptationConfig
from moe_asr.methods.adapter_config import AverageConfig, FuseConfig
from moe_asr.provenance import record


def average_adaptations(config: AverageConfig) -> Fused:
    """Runs the command; see `fuse_adaptations`."""
    return fuse_adaptations(FuseConfig(config.out_dir, config.adaptations, None, config.rank))


def fuse_adaptations(config: FuseConfig) -> Fused:
    """Runs the command.

    Raises:
        UserError: an adaptation is missing, there is no such expert, out_dir is one of the adaptations, or see `fuse`
    """
    loras = [lora for name in config.adaptations for lora in named_loras(name)]
    sources = {Path(split_name(name)[0]).resolve() for name in config.adaptations}
    if Path(config.out_dir).resolve() in sources:
        raise UserError(f"out_dir is one of the adaptations: give another folder than {config.out_dir}")
    weights = config.weights or [1 / max(len(loras), 1)] * len(loras)
    fused = fuse(loras, weights, config.rank)
    first = split_name(config.adaptations[0])[0]
    about = {
        "fused": {lora.name: weight for lora, weight in zip(loras, weights)},
        "relative_error": fused.error,
        "relative_errors": fused.errors,
        **record(),
    }
    save_fused(config.out_dir, fused, loras[0].base, read_adaptation(first), about)
    ranks = "/".join(str(rank) for rank in dict.fromkeys(spec.rank for spec in fused.specs))
    parts = " + ".join(f"{weight:.4g} x {lora.name}" for lora, weight in zip(loras, weights))
    print(f"{config.out_dir}: {parts}")
    print(f"rank {ranks}, {sum(tensor.numel() for tensor in fused.state.values()):,} parameters")
    if config.rank is None:
        print("exact: ranks of all experts side by side")
    else:
        for layer, error in fused.errors.items():
            print(f"  {layer}: relative error {error:.2%}")
        print(f"relative error of the sum in the Frobenius norm, all layers: {fused.error:.2%}")
    return fused


def save_fused(folder: str | Path, fused: Fused, base: str, config: AdaptationConfig, about: dict) -> None:
    """Writes an adaptation folder of one expert, without a domain classifier.

    Args:
        base: identity of the base
        config: of an adaptation that it was made from
    """
    first = fused.specs[0]
    targets = tuple(dict.fromkeys(target for spec in fused.specs for target in spec.targets))
    stream = first.stream if config.experts is None else config.experts.stream
    whole: ExpertSpec = dataclasses.replace(first, targets=targets, stream=stream)
    config = dataclasses.replace(
        config,
        experts=whole,
        saml=None,
        domains=(),
        base_domain=None,
        global_route="uniform",
        domain_classifier=None,
        beta=1.0,
        initial_experts=(),
    )
    with atomic_folder(folder) as new:
        write_adapter(new / "adapter", fused.specs, fused.state, base, about)
        save_config(config, new / "adaptation.yaml")


def split_name(name: str) -> tuple[str, str]:
    """`FOLDER:EXPERT` taken apart; a folder that is called so wins."""
    folder, colon, expert = name.rpartition(":")
    return (folder, expert) if colon and not Path(name).is_dir() else (name, "")


def named_loras(name: str) -> list[Lora]:
    """The experts that `FOLDER`, `FOLDER:NUMBER` or `FOLDER:DOMAIN` names.

    Raises:
        UserError: no adaptation there, or no such expert
    """
    folder, wanted = split_name(name)
    config = read_adaptation(folder)
    adapter = Path(folder) / "adapter"
    loras = read_loras(folder, read_adapter_info(adapter), read_adapter_tensors(adapter))
    return [loras[expert_number(folder, config, len(loras), wanted)]] if wanted else loras


def expert_number(folder: str | Path, config: AdaptationConfig, count: int, wanted: str) -> int:
    """Number of the one of `count` experts that its number or its domain names.

    Raises:
        UserError: there is no such expert
    """
    domains = expert_domains(config, count)
    if wanted in domains:
        return domains.index(wanted)
    if wanted.isdecimal() and int(wanted) < count:
        return int(wanted)
    raise UserError(f"{folder} has no expert {wanted}; its experts are {known_experts(config, count)}")


def known_experts(config: AdaptationConfig, count: int) -> str:
    """The names of the experts, for messages."""
    domains = expert_domains(config, count)
    return f"0 to {count - 1}" + (f", or {', '.join(domains)}" if domains else "")


def expert_domains(config: AdaptationConfig, count: int) -> tuple[str, ...]:
    """The domain that each of the experts stands for; empty where they are not tied to domains."""
    served = tuple(domain for domain in config.domains if domain != config.base_domain)
    return served if len(served) == count else ()

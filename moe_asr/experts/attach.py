"""Putting experts on a model."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from typing import Iterable, Sequence, Union

from torch import nn

from moe_asr.errors import UserError
from moe_asr.experts.adapter import Adapter, set_submodule
from moe_asr.experts.context import RoutingContext
from moe_asr.experts.domain_router import DomainRouter
from moe_asr.experts.layer import ExpertLinear, ExpertSpec, expert_factory
from moe_asr.experts.router_bank import RouterBank
from moe_asr.experts.routers import Router


def attach(
    model: nn.Module, specs: Union[ExpertSpec, Sequence[ExpertSpec]], members: int = 1, domain_width: int = 0
) -> Adapter:
    """Replaces the linear layers of `model` that match by expert layers around them, and freezes all else.

        adapter = attach(model, ExpertSpec(targets=("q_proj", "v_proj")))
        with adapter.route(domains=ids, lengths=lengths):
            loss = model(x).loss

    The model is changed in place; its weights are never written to. Several specs give layers different banks.

    Args:
        members: above 1, as many adapters of the same specs side by side, see `stack_adapters`
        domain_width: above 0, a `DomainRouter` for as many domains as experts, on encoder states of that width

    Raises:
        UserError: a pattern matches no linear layer, two specs match the same one, or the model has experts already
    """
    specs = (specs,) if isinstance(specs, ExpertSpec) else tuple(specs)
    if not specs:
        raise UserError("attach: no experts given")
    if any(isinstance(module, ExpertLinear) for module in model.modules()):
        raise UserError("attach: this model has experts already; call adapter.detach() first")
    if len({spec.num_experts for spec in specs}) > 1:
        raise UserError(
            "attach: all specs of one model need the same num_experts, since domains and experts correspond"
        )
    chosen: dict[str, ExpertSpec] = {}
    memory_layers: set[str] = set()
    for spec in specs:
        names = matching_layers(model, spec.targets)
        memory_layers.update(_memory_layers(model, spec, names))
        for name in names:
            if name in chosen:
                raise UserError(f"attach: layer {name} is matched by two specs; make their targets distinct")
            chosen[name] = spec
    context, layers = RoutingContext(), {}
    routers: dict[str, Union[Router, RouterBank]] = {}
    wrapped: dict[int, ExpertLinear] = {}  # one layer under two names stays one layer
    # All is built before anything is changed, so that an error leaves the model as it was.
    for name, spec in chosen.items():
        base = model.get_submodule(name)
        if id(base) not in wrapped:
            key, block = _keys(specs.index(spec), spec, name)
            if key not in routers:
                routers[key] = _make_router(spec, base, members)
            elif base.in_features != layers[_first(layers, routers[key])].in_features:
                raise UserError(
                    f"attach: layers with one router need one input width, but {name} has {base.in_features}; "
                    "use router scope: layer, or one spec for each width"
                )
            layer = ExpertLinear(base, spec, routers[key], context, name, block, name in memory_layers, members)
            wrapped[id(base)] = layers[name] = layer.train(base.training)
    model.requires_grad_(False)
    for name in chosen:
        set_submodule(model, name, wrapped[id(model.get_submodule(name))])
    domain_router = None
    if domain_width:
        domain_router = DomainRouter(
            domain_width, specs[0].num_experts, **expert_factory(next(iter(layers.values())).base)
        )
    return Adapter(model, specs, context, layers, routers, members, domain_router)


def matching_layers(model: nn.Module, targets: Sequence[str]) -> list[str]:
    """Names of the linear layers that match, in the model's order.

    Raises:
        UserError: a target matches nothing, or only modules that are not linear layers
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    linear = {name: None for name, module in modules.items() if _is_linear(module)}  # an ordered set
    found: set[str] = set()
    for target in targets:
        try:
            matches = [name for name in modules if layer_matches(name, [target])]
        except re.error as error:
            raise UserError(f"target '{target}' is no regular expression: {error}") from None
        hits = [name for name in matches if name in linear]
        if not hits:
            raise UserError(f"target '{target}' matches no linear layer; {_advice(target, matches, modules, linear)}")
        found.update(hits)
    return [name for name in linear if name in found]


def layer_matches(name: str, targets: Iterable[str]) -> bool:
    """Whether the name ends with one of the targets, or one matches the whole of it as a regular expression."""
    return any(f".{name}".endswith(f".{target}") or re.fullmatch(target, name) for target in targets)


def _advice(target: str, matches: list[str], modules: dict[str, nn.Module], linear: Iterable[str]) -> str:
    if matches:
        return f"{matches[0]} is a {type(modules[matches[0]]).__name__}"
    endings = Counter(name.rpartition(".")[2] for name in linear)
    near = difflib.get_close_matches(target, endings, n=3, cutoff=0.5) or [name for name, _ in endings.most_common(6)]
    return f"linear layers here are called {', '.join(near)}" if near else "this model has no linear layers"


def _is_linear(module: nn.Module) -> bool:
    # NonDynamicallyQuantizableLinear, the output of nn.MultiheadAttention, is read as a bare weight and never called.
    return type(module) is nn.Linear or hasattr(module, "dequantise") and hasattr(module, "in_features")


def _memory_layers(model: nn.Module, spec: ExpertSpec, names: Sequence[str]) -> set[str]:
    """Those of the layers `names` that are among the spec's memory_targets."""
    found = set(matching_layers(model, spec.memory_targets)).intersection(names)
    if spec.memory_targets and not found:
        raise UserError(
            f"memory_targets {', '.join(spec.memory_targets)} match none of the layers that targets match, such as "
            f"{names[0]}"
        )
    return found


def _keys(number: int, spec: ExpertSpec, name: str) -> tuple[str, str]:
    """Under which names a layer finds its router, and the layers that it shares weights with."""
    block, group = f"{name.rpartition('.')[0]}.group{number}", f"group{number}"
    router = {"layer": name, "block": block, "kind": group, "model": group}[spec.router.scope]
    return router, router if spec.router.memory_alone else block


def _make_router(spec: ExpertSpec, base: nn.Module, members: int) -> Union[Router, RouterBank]:
    routers = [Router(spec.router, spec.num_experts, base.in_features, **expert_factory(base)) for _ in range(members)]
    return routers[0] if members == 1 else RouterBank(routers)


def _first(layers: dict[str, ExpertLinear], router: nn.Module) -> str:
    return next(name for name, layer in layers.items() if layer.router is router)

"""Putting experts on a model and taking them off again."""

from __future__ import annotations

import copy
import difflib
import re
from collections import Counter
from contextlib import contextmanager
from typing import Iterable, Iterator, Optional, Sequence, Union

import torch
from torch import Tensor, nn

from moe_asr.errors import UserError
from moe_asr.experts.context import Lengths, Routing, RoutingContext, make_routing
from moe_asr.experts.layer import ExpertLinear, ExpertSpec, expert_factory
from moe_asr.experts.routers import Router
from moe_asr.experts.statistics import RoutingStatistics


def attach(model: nn.Module, specs: Union[ExpertSpec, Sequence[ExpertSpec]]) -> "Adapter":
    """Replaces the linear layers of `model` that match by expert layers around them, and freezes all else.

        adapter = attach(model, ExpertSpec(targets=("q_proj", "v_proj")))
        with adapter.route(domains=ids, lengths=lengths):
            loss = model(x).loss

    The model is changed in place; its weights are never written to. Several specs give layers different banks.

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
    for spec in specs:
        for name in matching_layers(model, spec.targets):
            if name in chosen:
                raise UserError(f"attach: layer {name} is matched by two specs; make their targets distinct")
            chosen[name] = spec
    context, layers = RoutingContext(), {}
    routers: dict[str, Router] = {}
    wrapped: dict[int, ExpertLinear] = {}  # one layer under two names stays one layer
    # All is built before anything is changed, so that an error leaves the model as it was.
    for name, spec in chosen.items():
        base = model.get_submodule(name)
        if id(base) not in wrapped:
            key = _router_key(specs.index(spec), spec, name)
            if key not in routers:
                routers[key] = Router(spec.router, spec.num_experts, base.in_features, **expert_factory(base))
            elif base.in_features != layers[_first(layers, routers[key])].in_features:
                raise UserError(
                    f"attach: layers with one router need one input width, but {name} has {base.in_features}; "
                    "use router scope: layer, or one spec for each width"
                )
            layer = ExpertLinear(base, spec, routers[key], context, name, key).train(base.training)
            wrapped[id(base)] = layers[name] = layer
    model.requires_grad_(False)
    for name in chosen:
        _set_submodule(model, name, wrapped[id(model.get_submodule(name))])
    return Adapter(model, specs, context, layers, routers)


class Adapter:
    """The handle on the experts of a model.

    Args:
        model: the model, experts attached
        layers: its expert layers by their names
        routers: its routers; the key is a layer, a block or the model, see `RouterSpec.scope`
    """

    def __init__(
        self,
        model: nn.Module,
        specs: tuple[ExpertSpec, ...],
        context: RoutingContext,
        layers: dict[str, ExpertLinear],
        routers: dict[str, Router],
    ) -> None:
        self.model, self.specs, self.context, self.layers, self.routers = model, specs, context, layers, routers

    def route(
        self,
        domains: Optional[Tensor] = None,
        lengths: Optional[Lengths] = None,
        scale: Optional[Tensor] = None,
        statistics: Optional[RoutingStatistics] = None,
        labels: Optional[Tensor] = None,
    ):
        """Context manager: what is known about the batches run inside it.

        Backward may be called outside. Where activations are checkpointed, hand `checkpoint_context_fn` to the
        checkpointing function, for `transformers` as `gradient_checkpointing_kwargs={"use_reentrant": False,
        "context_fn": adapter.checkpoint_context_fn}`.

        Args:
            domains: ids (N) or weights (N, E), for instance posteriors of an accent recogniser
            lengths: real frames of each utterance (N) at the layers' frame rate, or a mapping from stream to lengths
            scale: factor on the experts of each utterance (N)
            statistics: is shown all weights
            labels: domain ids (N) for the statistics; default the most probable domain
        """
        return self.context.use(make_routing(self.num_experts, domains, lengths, scale, statistics, labels))

    @property
    def num_experts(self) -> int:
        return self.specs[0].num_experts

    @property
    def routing(self) -> Routing:
        return self.context.routing

    @property
    def checkpoint_context_fn(self):
        return self.context.checkpoint_context_fn

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Inside, the model is its base, bit for bit."""
        with self.context.use(self.context.routing, enabled=False):
            yield

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """All parameters of experts and routers, under names that do not depend on how the layers are wrapped."""
        named = {}
        for name, layer in self.layers.items():
            named[f"{name}.A"], named[f"{name}.B"] = layer.A, layer.B
        for key, router in self.routers.items():
            for name, parameter in router.named_parameters():
                named[f"{key}.router.{name}"] = parameter
        return named

    def parameters(self) -> list[nn.Parameter]:
        return list(self.named_parameters().values())

    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def state_dict(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.named_parameters().items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Exact: UserError names the first missing, unexpected or misshapen tensor, before anything is written."""
        own = self.named_parameters()
        for kind, names in (("lacks", own.keys() - state.keys()), ("has no place for", state.keys() - own.keys())):
            if names:
                who = "the adapter" if kind == "lacks" else "the model"
                raise UserError(
                    f"{who} {kind} {min(names)}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
                )
        for name, tensor in state.items():
            if tensor.shape != own[name].shape:
                raise UserError(
                    f"{name} has shape {tuple(tensor.shape)} in the adapter, {tuple(own[name].shape)} in the model"
                )
        for name, tensor in state.items():
            own[name].copy_(tensor)

    def check_trainable(self) -> None:
        """Raises UserError unless exactly the experts and routers require gradient."""
        declared = {id(p) for p in self.parameters()}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and id(parameter) not in declared:
                raise UserError(
                    f"{name} would be trained, but it belongs to the frozen base; do not unfreeze it after attach"
                )
            if not parameter.requires_grad and id(parameter) in declared:
                raise UserError(
                    f"{name} belongs to the experts but is frozen; set requires_grad on it or detach the adapter"
                )

    def expert(self, index: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Copies of (A, B) of one expert for each layer, shapes (R, I) and (R, O)."""
        self._check_expert(index)
        return {name: (l.A[index].detach().clone(), l.B[index].detach().clone()) for name, l in self.layers.items()}

    @torch.no_grad()
    def set_expert(self, index: int, expert: dict[str, tuple[Tensor, Tensor]]) -> None:
        """Makes `expert` (from `expert` of the same or another adapter on the same layers) expert number `index`."""
        self._check_expert(index)
        if expert.keys() != self.layers.keys():
            name = min(expert.keys() ^ self.layers.keys())
            raise UserError(f"the expert and this adapter are on different layers, for instance {name}")
        for name, (A, B) in expert.items():
            layer = self.layers[name]
            if A.shape != layer.A.shape[1:] or B.shape != layer.B.shape[1:]:
                raise UserError(f"{name}: the expert has rank {A.shape[0]}, this adapter has rank {layer.A.shape[1]}")
        for name, (A, B) in expert.items():
            self.layers[name].A[index].copy_(A)
            self.layers[name].B[index].copy_(B)

    def merged(self, weights: Union[Tensor, Sequence[float]]) -> nn.Module:
        """A copy of the model with plain linear layers, experts merged in under fixed weights (E).

        Routers have no say in it. The adapted model is left as it is.
        """
        weights = torch.as_tensor(weights, dtype=torch.float32)
        if weights.shape != (self.num_experts,):
            raise UserError(
                f"merge: give one weight for each of the {self.num_experts} experts, not {tuple(weights.shape)}"
            )
        with self.context.use(None):
            model = copy.deepcopy(self.model)
        for name, layer in _expert_layers(model):
            _set_submodule(model, name, layer.merged(weights.to(layer.A.device)))
        return model

    def detach(self) -> nn.Module:
        """Takes the experts off; returns the model, now as it was before `attach` (still frozen)."""
        for name, layer in _expert_layers(self.model):
            _set_submodule(self.model, name, layer.base)
        return self.model

    def _check_expert(self, index: int) -> None:
        if not 0 <= index < self.num_experts:
            raise UserError(f"there is no expert {index}: this adapter has experts 0 to {self.num_experts - 1}")


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
            matches = [name for name in modules if f".{name}".endswith(f".{target}") or re.fullmatch(target, name)]
        except re.error as error:
            raise UserError(f"target '{target}' is no regular expression: {error}") from None
        hits = [name for name in matches if name in linear]
        if not hits:
            raise UserError(f"target '{target}' matches no linear layer; {_advice(target, matches, modules, linear)}")
        found.update(hits)
    return [name for name in linear if name in found]


def _advice(target: str, matches: list[str], modules: dict[str, nn.Module], linear: Iterable[str]) -> str:
    if matches:
        return f"{matches[0]} is a {type(modules[matches[0]]).__name__}"
    endings = Counter(name.rpartition(".")[2] for name in linear)
    near = difflib.get_close_matches(target, endings, n=3, cutoff=0.5) or [name for name, _ in endings.most_common(6)]
    return f"linear layers here are called {', '.join(near)}" if near else "this model has no linear layers"


def _is_linear(module: nn.Module) -> bool:
    # NonDynamicallyQuantizableLinear, the output of nn.MultiheadAttention, is read as a bare weight and never called.
    return type(module) is nn.Linear or hasattr(module, "dequantise") and hasattr(module, "in_features")


def _expert_layers(model: nn.Module) -> list[tuple[str, ExpertLinear]]:
    return [(n, m) for n, m in model.named_modules(remove_duplicate=False) if isinstance(m, ExpertLinear)]


def _router_key(number: int, spec: ExpertSpec, name: str) -> str:
    return {"layer": name, "block": f"{name.rpartition('.')[0]}.group{number}", "model": f"group{number}"}[
        spec.router.scope
    ]


def _first(layers: dict[str, ExpertLinear], router: Router) -> str:
    return next(name for name, layer in layers.items() if layer.router is router)


def _set_submodule(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent) if parent else model, child, module)

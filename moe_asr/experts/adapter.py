"""The handle on the experts of a model."""

from __future__ import annotations

import copy
from collections import OrderedDict
from contextlib import contextmanager
from typing import Any, Iterator, Literal, Optional, Sequence, Union

import torch
from torch import Tensor, nn

from moe_asr.errors import UserError
from moe_asr.experts.context import Lengths, Routing, RoutingContext, make_routing
from moe_asr.experts.domain_router import DomainRouter
from moe_asr.experts.layer import ExpertLinear, ExpertSpec
from moe_asr.experts.router_bank import RouterBank
from moe_asr.experts.routers import Router
from moe_asr.experts.statistics import RoutingStatistics

Part = Literal["all", "experts", "routers"]


class Adapter:
    """The handle on the experts of a model.

    Args:
        model: the model, experts attached
        layers: its expert layers by their names
        routers: its routers; the key is a layer, a block or a group of layers, see `RouterSpec.scope`
        members: number of adapters stacked on each other, see `stack_adapters`; `num_experts` counts those of one
        domain_router: tells the domains from encoder states; whoever runs the model asks it
    """

    def __init__(
        self,
        model: nn.Module,
        specs: tuple[ExpertSpec, ...],
        context: RoutingContext,
        layers: dict[str, ExpertLinear],
        routers: dict[str, Union[Router, RouterBank]],
        members: int = 1,
        domain_router: Optional[DomainRouter] = None,
    ) -> None:
        self.domain_router = domain_router
        self.model, self.specs, self.context, self.layers, self.routers = model, specs, context, layers, routers
        self.members = members
        self._trained: Part = "all"

    def route(
        self,
        domains: Optional[Tensor] = None,
        lengths: Optional[Lengths] = None,
        scale: Optional[Tensor] = None,
        statistics: Optional[RoutingStatistics] = None,
        labels: Optional[Tensor] = None,
        members: Optional[Tensor] = None,
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
            members: which of several stacked adapters serves each utterance (N)

        Routers that look at the encoder's states find them in `routing.memory`, a pair of states (N, T, I) and mask
        (N, T); whoever runs the encoder puts them there.
        """
        return self.context.use(
            make_routing(self.num_experts, domains, lengths, scale, statistics, labels, members, self.members)
        )

    def narrow(self, index: Tensor) -> None:
        """Inside `route`: from now on the batch consists of its utterances `index` only, as when some have ended."""
        self.context.narrow(index)

    def set_lengths(self, stream: str, lengths: Tensor) -> None:
        """Inside `route`: from now on the utterances (N) have so many real frames of this stream.

        For a decoder that sees a whole text first and one token after another later.
        """
        self.context.set_lengths(stream, lengths)

    @property
    def needs_memory(self) -> bool:
        """Whether a router looks at `routing.memory`."""
        return any(spec.router.needs_memory for spec in self.specs)

    @property
    def needs_whole_prefix(self) -> bool:
        """Whether a decoder has to run on all tokens so far at each step, without a cache of keys and values."""
        return any(spec.router.needs_whole_prefix for spec in self.specs)

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

    def named_parameters(self, part: Part = "all") -> dict[str, nn.Parameter]:
        """Parameters of experts, routers or both, under names that do not depend on how the layers are wrapped."""
        named = {}
        if part != "routers":
            for name, layer in self.layers.items():
                named[f"{name}.A"], named[f"{name}.B"] = layer.A, layer.B
        if part != "experts":
            for key, router in self.routers.items():
                for name, parameter in router.named_parameters():
                    named[f"{key}.router.{name}"] = parameter
            if self.domain_router is not None:
                for name, parameter in self.domain_router.named_parameters():
                    named[f"domain_router.{name}"] = parameter
        return named

    def parameters(self, part: Part = "all") -> list[nn.Parameter]:
        return list(self.named_parameters(part).values())

    def train_only(self, part: Part) -> None:
        """Freezes all but this part; `check_trainable` expects exactly it from now on.

        Raises:
            UserError: there are no routers with parameters
        """
        if not self.parameters(part):
            raise UserError(f"train_only {part}: these experts have none with parameters; set train_only: experts")
        self._trained = part
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        for parameter in self.trained_parameters():
            parameter.requires_grad_(True)

    def trained_parameters(self) -> list[nn.Parameter]:
        """What is declared to train: all, or the part named by `train_only`."""
        return self.parameters(self._trained)

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
        """Raises UserError unless exactly the experts and routers, or the part that trains alone, require gradient."""
        own, declared = {id(p) for p in self.parameters()}, {id(p) for p in self.trained_parameters()}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and id(parameter) not in own:
                raise UserError(
                    f"{name} would be trained, but it belongs to the frozen base; do not unfreeze it after attach"
                )
            if parameter.requires_grad and id(parameter) not in declared:
                raise UserError(f"{name} would be trained, but only the {self._trained} train; do not unfreeze it")
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
        self.check_single("merged")
        weights = torch.as_tensor(weights, dtype=torch.float32)
        if weights.shape != (self.num_experts,):
            raise UserError(
                f"merge: give one weight for each of the {self.num_experts} experts, not {tuple(weights.shape)}"
            )
        with self.context.use(None):
            model = copy.deepcopy(self.model)
        for name, layer in _expert_layers(model):
            set_submodule(model, name, layer.merged(weights.to(layer.A.device)))
        return model

    def base_copy(self) -> nn.Module:
        """The base as a model of its own, without experts, that uses the same weights: its parameters and buffers are
        the very tensors of this model, so that it takes no memory, and other experts can be attached to it.

        Forward hooks are not copied. To be called where the model is on its device, since moving it there makes new
        buffers. Not to be trained.
        """
        tensors = [*self.model.parameters(), *self.model.buffers()]
        memo: dict[int, Any] = {id(tensor): tensor for tensor in tensors}
        for module in self.model.modules():
            memo |= {id(hooks): OrderedDict() for hooks in (module._forward_hooks, module._forward_pre_hooks)}
        with self.context.use(None):
            model = copy.deepcopy(self.model, memo)
        for name, layer in _expert_layers(model):
            set_submodule(model, name, layer.base)
        return model

    def check_single(self, what: str) -> None:
        """Raises UserError for a stack of several adapters."""
        if self.members > 1:
            raise UserError(f"{what}: {self.members} adapters are stacked here; load one of them alone")

    def detach(self) -> nn.Module:
        """Takes the experts off; returns the model, now as it was before `attach` (still frozen)."""
        for name, layer in _expert_layers(self.model):
            set_submodule(self.model, name, layer.base)
        return self.model

    def _check_expert(self, index: int) -> None:
        self.check_single("expert")
        if not 0 <= index < self.num_experts:
            raise UserError(f"there is no expert {index}: this adapter has experts 0 to {self.num_experts - 1}")


def _expert_layers(model: nn.Module) -> list[tuple[str, ExpertLinear]]:
    return [(n, m) for n, m in model.named_modules(remove_duplicate=False) if isinstance(m, ExpertLinear)]


def set_submodule(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent) if parent else model, child, module)

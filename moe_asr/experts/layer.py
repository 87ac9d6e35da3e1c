"""A frozen linear layer with a bank of low-rank experts around it.

Shapes: N utterances, T frames, I input width, O output width, E experts, R rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moe_asr.errors import UserError
from moe_asr.experts.context import Routing, RoutingContext, Shared
from moe_asr.experts.mixture import base_product, factor_mixture, frozen_weight, merged_weight, product_mixture
from moe_asr.experts.router_spec import RouterSpec
from moe_asr.experts.routers import Router


@dataclass(frozen=True)
class ExpertSpec:
    """A mixture of LoRA experts on the linear layers whose names match.

    Args:
        targets: a layer matches if its name ends with one of these, or if one matches its whole name as a regex
        num_experts: E
        rank: R of each expert
        alpha: the experts' output is scaled by alpha / rank
        dropout: on the experts' input only
        mixing: product, sum_e w_e B_e A_e, or factor, (sum_e w_e B_e)(sum_e w_e A_e) with one w for each utterance
        same_start: all experts start from one A
        router: who computes the weights
        stream: which of the lengths given to `route` hold for these layers; recipes fill it in
        memory_targets: those of the layers, named in the same way, that see the memory instead of the frames of their
            block (keys and values of cross-attention); they take the block's weights, of its first frame where each
            frame has its own
    """

    targets: tuple[str, ...]
    num_experts: int = 8
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    mixing: Literal["product", "factor"] = "product"
    same_start: bool = False
    router: RouterSpec = field(default_factory=RouterSpec)
    stream: str = "default"
    memory_targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.targets:
            raise UserError("experts: targets is empty; name the linear layers that get experts")
        if self.num_experts < 1 or self.rank < 1:
            raise UserError(f"experts: num_experts and rank must be at least 1, not {self.num_experts} and {self.rank}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"experts: dropout must be from 0 to below 1, not {self.dropout}")
        local_frames = self.router.route != "given" and self.router.granularity == "frame"
        if self.mixing == "factor" and (local_frames or self.router.threshold_over == "frame"):
            raise UserError(
                "experts: factor mixing is for weights of an utterance; set router granularity and threshold_over: "
                "utterance"
            )
        if self.memory_targets and not (self.router.scope in ("block", "kind") or self.router.memory_alone):
            raise UserError("experts: memory_targets take the weights of their block; set router scope: block or kind")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class ExpertLinear(nn.Module):
    """`y = W x + b + s sum_e w_e B_e A_e x` (product) or `y = W x + b + s (sum_e w_e B_e)(sum_e w_e A_e) x` (factor).

    A is Kaiming-uniform(a = sqrt 5) and B zero, so a fresh layer equals its base bit for bit. The base is never written
    to. `A` has shape (E, R, I) and `B` (E, R, O), stored stacked so that a step copies nothing.

    Args:
        base: a frozen `nn.Linear`, or a layer with `in_features`, `out_features`, `bias` and `dequantise()`
        router: shared between layers where the spec says so
        context: where the routing of the current batch is found; shared by all layers of the model
        name: of this layer in its model, for statistics and messages
        block: key of the layers that share their weights, see `RouterSpec.scope`
        sees_memory: whether it is one of `memory_targets`
        members: number of adapters stacked on each other, each with E experts of its own
    """

    def __init__(
        self,
        base: nn.Module,
        spec: ExpertSpec,
        router: Router,
        context: RoutingContext,
        name: str = "",
        block: str = "",
        sees_memory: bool = False,
        members: int = 1,
    ) -> None:
        super().__init__()
        self.base, self.spec, self.router, self.name, self.block = base, spec, router, name, block
        self.sees_memory, self.members = sees_memory, members
        self.context = context  # a plain object, not a module
        factory = expert_factory(base)
        E, R = spec.num_experts * members, spec.rank
        self.A = nn.Parameter(torch.empty(E, R, base.in_features, **factory))
        self.B = nn.Parameter(torch.zeros(E, R, base.out_features, **factory))
        bound = 1 / math.sqrt(base.in_features)  # Kaiming-uniform with a = sqrt 5 and fan-in I
        nn.init.uniform_(self.A, -bound, bound)
        if spec.same_start:
            with torch.no_grad():
                self.A.copy_(self.A[:1].expand_as(self.A).clone())

    @property
    def in_features(self) -> int:
        return self.base.in_features

    @property
    def out_features(self) -> int:
        return self.base.out_features

    # Models that look at `linear.weight` (its dtype, its device) go on working.
    @property
    def weight(self) -> Tensor:
        return frozen_weight(self.base)

    @property
    def bias(self):
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        """x of shape (N, T, I); (N, I) is one real frame each; (N, ..., I) for routers that do not pool over frames."""
        if not self.context.enabled:
            return self.base(x)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
            with torch.autocast(x.device.type, enabled=False):
                return self._mix(x)
        return self._mix(x)

    def gates(self, x_NTI: Tensor, frames_are_time: bool = True) -> Tensor:
        """Weights of the experts for this input under the current routing: (N, E) or (N, T, E)."""
        routing, spec = self.context.routing, self.spec.router
        routing.thresholds.clear()
        mask_NT = None
        if spec.needs_input and not self.sees_memory:
            if frames_are_time:
                mask_NT = routing.mask(self.spec.stream, x_NTI.shape[1], x_NTI.device)
            elif x_NTI.shape[1] == 1:
                mask_NT = torch.ones(x_NTI.shape[:2], dtype=torch.bool, device=x_NTI.device)
        if spec.memory_alone:
            gates = self._batch_gates(x_NTI, routing)
        elif spec.scope in ("block", "kind"):
            gates = self._block_gates(x_NTI, mask_NT, routing)
        else:
            gates = self.router(x_NTI, mask_NT, routing)
        if routing.statistics is not None:
            own = gates if self.members == 1 else gates.unflatten(-1, (self.members, -1)).sum(-2)
            routing.statistics.update(self.name, own, mask_NT, routing.labels_N)
            for threshold in routing.thresholds:
                routing.statistics.update_threshold(self.name, *threshold)
        return gates

    def _batch_gates(self, x_NTI: Tensor, routing: Routing) -> Tensor:
        """Weights that depend on the memory alone: computed once, by the first layer that has this router."""
        shared = routing.shared.get(self.block)
        if shared is None or shared.memory is not routing.memory:
            shared = Shared(self.router(x_NTI, None, routing), x_NTI.shape[:2], routing.memory)
            routing.shared[self.block] = shared
        if shared.gates.shape[0] != x_NTI.shape[0]:
            raise UserError(
                f"layer {self.name} sees {x_NTI.shape[0]} utterances, but the memory is of {shared.gates.shape[0]}: "
                "narrow the routing as the batch is narrowed (`adapter.narrow`)"
            )
        return shared.gates

    def _block_gates(self, x_NTI: Tensor, mask_NT: Optional[Tensor], routing: Routing) -> Tensor:
        """The first layer of the block computes; a layer that comes again starts the next pass over the block."""
        if not self.context.active:
            raise UserError("layers of a block share their weights: call the model inside `with adapter.route(...):`")
        shared = routing.shared.get(self.block)
        if shared is None or self.name in shared.layers:
            if self.sees_memory:
                raise UserError(
                    f"layer {self.name} sees the memory, but takes its weights from layers of its block that see the "
                    "text and have not run: decode without a cache, or set router source: memory"
                )
            shared = Shared(self.router(x_NTI, mask_NT, routing), x_NTI.shape[:2])
            routing.shared[self.block] = shared
        dims = 1 if self.sees_memory else 2
        if shared.shape[:dims] != x_NTI.shape[:dims]:
            raise UserError(
                f"layer {self.name} sees {tuple(x_NTI.shape[:2])} utterances and frames, the layers that it shares "
                f"weights with saw {tuple(shared.shape)}: use router scope: layer, or memory_targets for "
                "cross-attention"
            )
        shared.layers.add(self.name)
        return shared.gates[:, 0] if self.sees_memory and shared.gates.dim() == 3 else shared.gates

    def _mix(self, x: Tensor) -> Tensor:
        x_NTI = x[:, None] if x.dim() == 2 else x.flatten(1, -2)
        gates = self.gates(x_NTI, frames_are_time=x.dim() == 3).to(x.dtype)
        A, B = self.A, self.B
        if not gates.requires_grad and gates.device.type == "cpu" and self.spec.mixing == "product":
            gates, A, B = _drop_idle(gates, A, B)
            if A.shape[0] == 0:
                return base_product(self.base, x)
        if self._merging_pays(x_NTI, gates, A):
            y_NTO = self._merged_forward(x_NTI, gates, A, B)
        else:
            dropped = F.dropout(x_NTI, self.spec.dropout) if self.training and self.spec.dropout else None
            mix = factor_mixture if self.spec.mixing == "factor" else product_mixture
            y_NTO = mix(self.base, x_NTI, A.to(x.dtype), B.to(x.dtype), gates, self.spec.scale, dropped)
        return y_NTO.view(*x.shape[:-1], self.out_features)

    def _merging_pays(self, x_NTI: Tensor, gates: Tensor, A: Tensor) -> bool:
        """One merged weight for each utterance: only without gradients, in full precision, and on many frames."""
        if torch.is_grad_enabled() and (x_NTI.requires_grad or gates.requires_grad or A.requires_grad):
            return False
        if gates.dim() != 2 or self.spec.mixing == "factor" or self.training:
            return False
        if not isinstance(self.base, nn.Linear) or self.base.weight.dtype not in (torch.float32, torch.float64):
            return False
        width = 2 * self.in_features * self.out_features / (self.in_features + self.out_features)
        return x_NTI.shape[1] > 0.75 * width and x_NTI.dtype == self.base.weight.dtype

    def _merged_forward(self, x_NTI: Tensor, gates_NE: Tensor, A_ERI: Tensor, B_ERO: Tensor) -> Tensor:
        y_NTO = x_NTI.new_empty(*x_NTI.shape[:2], self.out_features)
        for x_TI, gates_E, y_TO in zip(x_NTI, gates_NE, y_NTO):
            weight_OI = merged_weight(self.base.weight, A_ERI, B_ERO, gates_E, self.spec.scale, self.spec.mixing)
            if self.bias is None:
                torch.mm(x_TI, weight_OI.t(), out=y_TO)
            else:
                torch.addmm(self.bias, x_TI, weight_OI.t(), out=y_TO)
        return y_NTO

    def merged(self, gates_E: Tensor) -> nn.Linear:
        """A plain linear layer with the experts merged in under fixed weights; this layer stays as it is.

        Raises:
            UserError: the base is quantised, since the sum would have to be quantised anew
        """
        if not isinstance(self.base, nn.Linear):
            raise UserError(f"layer {self.name}: experts are not merged into a quantised base; dequantise it first")
        weight = self.base.weight
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, weight.device, weight.dtype)
        with torch.no_grad():
            A, B = self.A.to(weight.dtype), self.B.to(weight.dtype)
            linear.weight.copy_(merged_weight(weight, A, B, gates_E.to(weight), self.spec.scale, self.spec.mixing))
            if self.bias is not None:
                linear.bias.copy_(self.bias)
        return linear.requires_grad_(False).train(self.training)

    def extra_repr(self) -> str:
        spec = self.spec
        return f"experts={spec.num_experts}, rank={spec.rank}, mixing={spec.mixing}, route={spec.router.route}"


def expert_factory(base: nn.Module) -> dict:
    """Device of the base; float32 whatever the base is stored in, since experts are trained (float64 stays)."""
    like = next(iter([*base.parameters(), *base.buffers()]))
    return {"device": like.device, "dtype": torch.float64 if like.dtype == torch.float64 else torch.float32}


def _drop_idle(gates: Tensor, A_ERI: Tensor, B_ERO: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Leaves out experts that no frame of the batch uses; views where the used ones are neighbours.

    Only for weights without gradient: an expert of weight 0 has no gradient, but its weight has one.
    """
    used = (gates != 0).flatten(0, -2).any(0).nonzero().flatten().tolist()
    if not used and torch.is_grad_enabled():
        used = [0]  # so that backward finds a graph, with zeros in it
    if len(used) == A_ERI.shape[0]:
        return gates, A_ERI, B_ERO
    if used and used[-1] - used[0] + 1 == len(used):
        keep = slice(used[0], used[-1] + 1)
    else:
        keep = used
    return gates[..., keep], A_ERI[keep], B_ERO[keep]

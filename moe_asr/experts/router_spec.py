"""What a router can be told; the formulas are in `moe_asr.experts.routers`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moe_asr.errors import UserError
from moe_asr.experts.pooling import Over


@dataclass(frozen=True)
class RouterSpec:
    """How a layer weighs its experts.

    Args:
        route: given (domain of the utterance alone), local (the layer's input alone) or hierarchical (both)
        select: which experts stay: all, topk, threshold or sparsegen
        threshold: where threshold or sparsity come from: input (linear in the layer's input), learned (a scalar) or
            fixed
        threshold_over: what an input-dependent threshold of the global route looks at: the utterance (mean of its real
            frames) or each frame by itself; that of the local route looks at what its weights are computed from
        fixed_threshold: for fixed: threshold in units of 1 / number of experts, or the sparsity; from 0 to below 1
        hard: keep p where it reaches the threshold instead of subtracting; needs a fixed threshold
        top_k: experts kept by topk
        combine: mean, sum, gate (learned from the input) or product (renormalised) of global and local weights
        granularity: local weights for each frame, or one for the utterance from its frames pooled into one vector
        pooling: of the utterance: mean, or attention (convolution and softmax, see `AttentivePooling`)
        over: frames that are pooled: real ones, prefix (up to each frame, so one weight for each) or all (padding too)
        source: what is pooled: the layer's input, the memory (encoder states, see `Adapter.route`), or both
        bias: of the local route
        temperature: of the global route; above 1 flattens it
        local_temperature: of the local route
        balance: weight of the load-balancing term E * sum_e f_e P_e of the local route (Switch Transformer)
        scope: one router for each layer, each block (weights computed once by its first layer), one for all blocks
            (kind; weights as for block) or one for the model (weights computed by each layer)
    """

    route: Literal["given", "local", "hierarchical"] = "hierarchical"
    select: Literal["all", "topk", "threshold", "sparsegen"] = "threshold"
    threshold: Literal["input", "learned", "fixed"] = "input"
    threshold_over: Literal["utterance", "frame"] = "utterance"
    fixed_threshold: float = 0.5
    hard: bool = False
    top_k: int = 2
    combine: Literal["mean", "sum", "gate", "product"] = "mean"
    granularity: Literal["frame", "utterance"] = "frame"
    pooling: Literal["mean", "attention"] = "mean"
    over: Over = "real"
    source: Literal["layer", "memory", "both"] = "layer"
    bias: bool = False
    temperature: float = 1.0
    local_temperature: float = 1.0
    balance: float = 0.0
    scope: Literal["layer", "block", "kind", "model"] = "layer"

    def __post_init__(self) -> None:
        if self.hard and (self.select != "threshold" or self.threshold != "fixed"):
            raise UserError(
                "router: hard selection gives a threshold no gradient; set select: threshold, threshold: fixed"
            )
        if self.threshold_over == "frame" and not (self._has_global_threshold and self.threshold == "input"):
            raise UserError(
                "router: threshold_over is for the global route's threshold that depends on the input; set route: "
                "hierarchical or given, select: threshold or sparsegen and threshold: input, or leave it out"
            )
        if not 0 <= self.fixed_threshold < 1:
            raise UserError(f"router: fixed_threshold must be from 0 to below 1, not {self.fixed_threshold}")
        if self.top_k < 1:
            raise UserError(f"router: top_k must be at least 1, not {self.top_k}")
        if min(self.temperature, self.local_temperature) <= 0:
            raise UserError(
                f"router: temperatures must be above 0, not {self.temperature} and {self.local_temperature}"
            )
        pools = self.route != "given" and self.granularity == "utterance"
        if not pools and (self.pooling, self.over, self.source) != ("mean", "real", "layer"):
            raise UserError(
                "router: pooling, over and source are for local weights of a whole utterance; set granularity: "
                "utterance, or leave them out"
            )
        if self.source == "memory" and self.over == "prefix":
            raise UserError("router: the memory is known as a whole from the start; set over: real, or source: both")

    @property
    def needs_domains(self) -> bool:
        return self.route != "local"

    @property
    def needs_memory(self) -> bool:
        return self.source != "layer"

    @property
    def needs_input(self) -> bool:
        """Whether the weights depend on the input of the layer."""
        local = self.route != "given" and self.source != "memory"
        return local or self._has_global_threshold and self.threshold == "input"

    @property
    def pools_frames(self) -> bool:
        """Whether weights depend on several frames of the layer's input together."""
        local = self.route != "given" and self.granularity == "utterance" and self.source != "memory"
        return local or self._has_utterance_threshold

    @property
    def looks_ahead(self) -> bool:
        """Whether weights of a frame depend on later frames of the layer's input."""
        return self.pools_frames and (self.over != "prefix" or self._has_utterance_threshold)

    @property
    def memory_alone(self) -> bool:
        """Whether the weights depend on the memory and nothing else, so that they hold for a whole batch."""
        return self.needs_memory and not self.needs_input

    @property
    def needs_whole_prefix(self) -> bool:
        """Whether a decoder has to run on all tokens so far at each step: no cache knows what was pooled."""
        return self.source == "both" or self.source == "layer" and self.over != "real"

    @property
    def _has_global_threshold(self) -> bool:
        return self.route != "local" and self.select in ("threshold", "sparsegen") and self.threshold != "fixed"

    @property
    def _has_utterance_threshold(self) -> bool:
        return self._has_global_threshold and self.threshold == "input" and self.threshold_over == "utterance"

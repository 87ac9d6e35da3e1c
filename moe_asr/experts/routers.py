"""Routers: who computes the weights of the experts.

All routers of the toolkit are one formula with parts switched on or off:

    global   g_N1E = p_domain^(1/T_g) normalised                     given ids or posteriors, one per utterance
                                                                     (as given where it is alone and all are selected)
    local    l_NTE = softmax((x W_loc^T + c) / T_l)                  computed from the layer's own input
                                                                     (or from z, its frames or the memory's pooled)
    select   p_hat = all | top-k | threshold | sparsegen of p        with its own threshold for each of the two
    combine  w = (g_hat + l_hat) / 2                                 where both are there

    given: g alone · dense: l, all · top-k: l, topk · AdaMoLE: l, threshold · LD-MoLE: l, sparsegen
    HDMoLE: both, threshold · SAML: l, all, of attentively pooled frames

The defaults are our reading of HDMoLE (arXiv 2409.19878); the paper's text fixes hierarchical routing and dynamic
thresholds, not these formulas.

Shapes: N utterances, T frames, I layer input width, E experts.
"""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moe_asr.errors import UserError
from moe_asr.experts.context import Routing
from moe_asr.experts.pooling import AttentivePooling, MeanPooling
from moe_asr.experts.router_spec import RouterSpec
from moe_asr.experts.selection import hard_threshold, soft_threshold, sparsegen, top_k

LARGEST_THRESHOLD = 0.999  # in units of 1 / number of experts


class Router(nn.Module):
    """Weights of E experts for a layer of input width I; see the formulas at the top of this file.

    `threshold: input` is `tau(x) = sigmoid(v . x + c) / E`, below 1/E, so that at least one expert survives. The global
    threshold takes the masked mean of x, or with `threshold_over: frame` each x_t, so that each frame has global
    weights of its own. Parameters start at v = 0, c = 0, i.e. tau = 1 / (2 E).
    """

    def __init__(self, spec: RouterSpec, num_experts: int, width: int, **factory) -> None:
        super().__init__()
        self.spec, self.num_experts, self.width = spec, num_experts, width
        if spec.select == "topk" and spec.top_k > num_experts:
            raise UserError(f"router: top_k is {spec.top_k}, but there are {num_experts} experts")
        routes = {"given": ["global"], "local": ["local"], "hierarchical": ["global", "local"]}[spec.route]
        local_width = 2 * width if spec.source == "both" else width
        if "local" in routes:
            self.local = nn.Parameter(torch.empty(num_experts, local_width, **factory))
            nn.init.normal_(self.local, std=0.02)
            if spec.bias:
                self.local_bias = nn.Parameter(torch.zeros(num_experts, **factory))
        if spec.select in ("threshold", "sparsegen") and spec.threshold != "fixed":
            for route in routes:
                if spec.threshold == "input":
                    seen = local_width if route == "local" else width
                    setattr(self, f"threshold_{route}", nn.Parameter(torch.zeros(1, seen, **factory)))
                setattr(self, f"threshold_{route}_bias", nn.Parameter(torch.zeros(1, **factory)))
        if spec.route == "hierarchical" and spec.combine == "gate":
            self.gate = nn.Parameter(torch.zeros(2, local_width, **factory))
        self.mean = MeanPooling()
        for source in ("layer", "memory") if spec.source == "both" else (spec.source,):
            pooling = AttentivePooling(width, **factory) if spec.pooling == "attention" else self.mean
            setattr(self, f"pool_{source}", pooling)

    def forward(self, x_NTI: Tensor, mask_NT: Optional[Tensor], routing: Routing) -> Tensor:
        """Returns weights (N, E) where they are the same for all frames of an utterance, else (N, T, E); float32."""
        spec = self.spec
        x_NTI = x_NTI.to(torch.promote_types(x_NTI.dtype, torch.float32))
        mean_N1I = None
        if hasattr(self, "threshold_global") and spec.threshold_over == "utterance":
            mean_N1I = self.mean(x_NTI, mask_NT)
        gate = None
        if spec.route != "given":
            local_input = x_NTI if spec.granularity == "frame" else self._pooled(x_NTI, mask_NT, routing, mean_N1I)
            # One product for all rows that look at the same input.
            rows = [self.local] + [getattr(self, n) for n in ("threshold_local", "gate") if hasattr(self, n)]
            logits = F.linear(local_input, (torch.cat(rows) if len(rows) > 1 else self.local).to(x_NTI.dtype))
            E = self.num_experts
            p = self._temper(logits[..., :E]).softmax(-1)
            tau_logit = logits[..., E : E + 1] if hasattr(self, "threshold_local") else None
            w = local = self._select(p, "local", tau_logit, mask_NT, routing)
            if spec.balance and self.training and torch.is_grad_enabled():
                routing.balance.append(spec.balance * balance_term(p, local, mask_NT))
            if hasattr(self, "gate"):
                gate = logits[..., -2:].softmax(-1)
        if spec.route != "local":
            p = _sharpen(self._domains(routing, x_NTI), spec.temperature)[:, None]
            if spec.select != "all" or spec.route == "hierarchical":
                p = p / p.sum(-1, keepdim=True)
            tau_logit = None
            if hasattr(self, "threshold_global"):
                seen = x_NTI if mean_N1I is None else mean_N1I
                tau_logit = F.linear(seen, self.threshold_global.to(x_NTI.dtype))
            w = self._select(p, "global", tau_logit, mask_NT, routing)
            if spec.route == "hierarchical":
                w = _combine(spec.combine, w, local, gate)
        if routing.scale_N is not None:
            w = w * routing.scale_N.to(w)[:, None, None]
        return w.squeeze(1) if w.shape[1] == 1 else w

    def _pooled(self, x_NTI: Tensor, mask_NT: Optional[Tensor], routing: Routing, mean_N1I: Optional[Tensor]) -> Tensor:
        """z of the utterances, (N, 1, I) or for prefix (N, T, I); twice as wide where it is made of both sources.

        Args:
            mean_N1I: over the real frames of x, where it is known already
        """
        over, parts = self.spec.over, []
        if self.spec.source != "memory":
            known = mean_N1I is not None and self.pool_layer is self.mean and over == "real"
            parts.append(mean_N1I if known else self.pool_layer(x_NTI, mask_NT, over))
        if self.spec.source != "layer":
            memory_NTI, memory_mask_NT = self._memory(routing, x_NTI)
            parts.append(self.pool_memory(memory_NTI, memory_mask_NT, "all" if over == "all" else "real"))
        if len(parts) == 1:
            return parts[0]
        return torch.cat([parts[0], parts[1].expand_as(parts[0])], -1)

    def _temper(self, logits: Tensor) -> Tensor:
        if self.spec.bias:
            logits = logits + self.local_bias.to(logits.dtype)
        return logits if self.spec.local_temperature == 1.0 else logits / self.spec.local_temperature

    def _select(
        self, p: Tensor, route: str, tau_logit: Optional[Tensor], mask_NT: Optional[Tensor], routing: Routing
    ) -> Tensor:
        spec = self.spec
        if spec.select == "all":
            return p
        if spec.select == "topk":
            return top_k(p, spec.top_k)
        if spec.threshold == "fixed":
            level = p.new_full((1,), spec.fixed_threshold)
        else:
            bias = getattr(self, f"threshold_{route}_bias").to(p.dtype)
            # A saturated sigmoid is exactly 1 in float32; then no expert would survive uniform probabilities.
            level = torch.sigmoid(bias if tau_logit is None else tau_logit + bias).clamp(max=LARGEST_THRESHOLD)
            if routing.statistics is not None:
                routing.thresholds.append((route, level, mask_NT))
        if spec.select == "sparsegen":
            return sparsegen(p, level)
        return (hard_threshold if spec.hard else soft_threshold)(p, level / self.num_experts)

    def _domains(self, routing: Routing, x_NTI: Tensor) -> Tensor:
        if routing.domains_NE is None:
            raise UserError(
                f"the router is '{self.spec.route}' and needs the domain of each utterance: call the model inside "
                "`with adapter.route(domains=ids or posteriors):`"
            )
        _check_utterances("routing", routing.domains_NE, x_NTI)
        return routing.domains_NE.to(x_NTI.device, x_NTI.dtype)

    def _memory(self, routing: Routing, x_NTI: Tensor) -> tuple[Tensor, Optional[Tensor]]:
        if routing.memory is None:
            raise UserError(
                "the router looks at the memory, the encoder states of each utterance, and there is none: set "
                "routing.memory = (states, mask), or router source: layer"
            )
        memory_NTI, mask_NT = routing.memory
        _check_utterances("memory", memory_NTI, x_NTI)
        if memory_NTI.shape[-1] != self.width:
            raise UserError(
                f"the memory is {memory_NTI.shape[-1]} wide, but the layers whose router looks at it {self.width}: "
                "it must be as wide as their input"
            )
        return memory_NTI.to(x_NTI.device, x_NTI.dtype), mask_NT


def _check_utterances(what: str, tensor_N: Tensor, x_NTI: Tensor) -> None:
    if tensor_N.shape[0] != x_NTI.shape[0]:
        raise UserError(
            f"the {what} is for {tensor_N.shape[0]} utterances, but the layer sees {x_NTI.shape[0]}: repeat it as the "
            "batch is repeated or narrowed (beam search), or call `adapter.route` for each batch"
        )


def balance_term(p: Tensor, w: Tensor, mask_NT: Optional[Tensor]) -> Tensor:
    """`E * sum_e f_e P_e`: f share of frames whose largest weight is e, P mean probability; 1 where balanced."""
    top = F.one_hot(w.argmax(-1), w.shape[-1]).to(p.dtype)
    if mask_NT is None or p.shape[1] != mask_NT.shape[1]:
        return p.shape[-1] * (top.mean((0, 1)) * p.mean((0, 1))).sum()
    mask = mask_NT.to(p.dtype)[..., None]
    return p.shape[-1] * ((top * mask).sum((0, 1)) * (p * mask).sum((0, 1))).sum() / mask.sum() ** 2


def _sharpen(p_NE: Tensor, temperature: float) -> Tensor:
    """`softmax(log p / T)`: the posteriors that the recogniser's logits give at temperature T."""
    return p_NE if temperature == 1.0 else (p_NE.log() / temperature).softmax(-1)


def _combine(how: str, g: Tensor, l: Tensor, gate: Optional[Tensor]) -> Tensor:
    if how == "gate":
        return gate[..., :1] * g + gate[..., 1:] * l
    if how == "product":
        both = g * l
        total = both.sum(-1, keepdim=True)
        # Global and local choice may have no expert in common; then neither is thrown away.
        agree = total > 0
        return torch.where(agree, both / torch.where(agree, total, 1.0), (g + l) / 2)
    return (g + l) if how == "sum" else (g + l) / 2

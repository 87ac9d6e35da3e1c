"""Which experts a model really uses: mean weight for each domain, and active experts, layer by layer.

Shapes: N utterances, T frames, E experts, G domains.
"""

from __future__ import annotations

from typing import Optional, Sequence

import torch
from torch import Tensor


class RoutingStatistics:
    """Sums of expert weights over all real frames shown to it.

    Args:
        domains: names of the domains, in the order of the label ids; frames of other labels count for the total only
    """

    def __init__(self, domains: Sequence[str]) -> None:
        self.domains = tuple(domains)
        self._weights: dict[str, Tensor] = {}  # layer -> (G + 1, E) sum of weights, last row for unknown domains
        self._active: dict[str, Tensor] = {}  # layer -> (G + 1) sum of active experts
        self._frames: dict[str, Tensor] = {}  # layer -> (G + 1) frames

    @torch.no_grad()
    def update(self, layer: str, gates: Tensor, mask_NT: Optional[Tensor], labels_N: Optional[Tensor]) -> None:
        """Adds the weights of one layer for one batch, (N, E) or (N, T, E); padding is left out."""
        N = gates.shape[0]
        if gates.dim() == 2:
            gates, mask_NT = gates[:, None], None
        gates = gates.double()
        mask = torch.ones(gates.shape[:2], device=gates.device) if mask_NT is None else mask_NT
        mask_NT1 = mask.to(gates)[..., None]
        labels = torch.full((N,), -1, device=gates.device) if labels_N is None else labels_N.to(gates.device)
        named = (labels >= 0) & (labels < len(self.domains))
        rows = torch.where(named, labels, len(self.domains))
        size = len(self.domains) + 1
        for sums, value_N in (
            (self._weights, (gates * mask_NT1).sum(1)),
            (self._active, ((gates > 0) * mask_NT1).sum((1, 2))),
            (self._frames, mask_NT1.sum((1, 2))),
        ):
            if layer not in sums:
                sums[layer] = torch.zeros((size, *value_N.shape[1:]), dtype=torch.double, device=gates.device)
            sums[layer].index_add_(0, rows, value_N)

    def state(self) -> dict[str, list]:
        """The sums as plain numbers, for JSON; `add` takes them back exactly."""
        return {
            n: [self._weights[n].tolist(), self._active[n].tolist(), self._frames[n].tolist()] for n in self._weights
        }

    def add(self, state: dict[str, list]) -> None:
        """Adds the sums of other batches."""
        for layer, values in state.items():
            for sums, value in zip((self._weights, self._active, self._frames), values):
                tensor = torch.tensor(value, dtype=torch.double)
                sums[layer] = sums[layer].cpu() + tensor if layer in sums else tensor

    @property
    def layers(self) -> list[str]:
        return list(self._weights)

    def mean_weights(self, layer: str) -> Tensor:
        """(G, E) mean weight of each expert for each domain; NaN for a domain that did not occur."""
        return (self._weights[layer] / self._frames[layer][:, None])[:-1]

    def overall_weights(self, layer: str) -> Tensor:
        """(E,) mean weight of each expert over all frames, those of unknown domains included."""
        return self._weights[layer].sum(0) / self._frames[layer].sum()

    def active_experts(self, layer: str) -> float:
        """Mean number of experts with a weight above zero."""
        return float(self._active[layer].sum() / self._frames[layer].sum())

    def summary(self) -> dict:
        """Everything as plain numbers, for JSON; a domain that did not occur has no mean weights."""
        layers = {
            name: {
                "active_experts": self.active_experts(name),
                "mean_weights": [None if row[0] != row[0] else row for row in self.mean_weights(name).tolist()],
            }
            for name in self.layers
        }
        active = [entry["active_experts"] for entry in layers.values()]
        return {
            "domains": list(self.domains),
            "mean_active_experts": sum(active) / len(active) if active else None,
            "layers": layers,
        }

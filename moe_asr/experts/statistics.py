"""Which experts a model really uses: mean weight for each domain, active experts and thresholds, layer by layer.

Shapes: N utterances, T frames, E experts, G domains.
"""

from __future__ import annotations

from typing import Optional, Sequence

import torch
from torch import Tensor


class RoutingStatistics:
    """Sums of expert weights over all real frames shown to it.

    While a text is being found, tokens of all hypotheses of the search are frames of the layers that see tokens, not
    only those of the text that wins.

    Args:
        domains: names of the domains, in the order of the label ids; frames of other labels count for the total only
    """

    def __init__(self, domains: Sequence[str]) -> None:
        self.domains = tuple(domains)
        self._weights: dict[str, Tensor] = {}  # layer -> (G + 1, E) sum of weights, last row for unknown domains
        self._active: dict[str, Tensor] = {}  # layer -> (G + 1) sum of active experts
        self._frames: dict[str, Tensor] = {}  # layer -> (G + 1) frames
        self._thresholds: dict[str, dict[str, Tensor]] = {}  # layer -> route -> (2) sum of thresholds, how many

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

    @torch.no_grad()
    def update_threshold(self, layer: str, route: str, level: Tensor, mask_NT: Optional[Tensor]) -> None:
        """Adds the thresholds of one layer for one batch.

        Args:
            route: global or local
            level: threshold in units of 1 / number of experts, or sparsity: of each utterance (N, 1, 1), each frame
                (N, T, 1), of which those of padding are left out, or (1) of the layer
        """
        level = level.double()
        if mask_NT is None or level.shape[:2] != mask_NT.shape:
            new = torch.stack([level.sum(), level.new_tensor(level.numel())])
        else:
            new = torch.stack([torch.where(mask_NT, level[..., 0], 0.0).sum(), mask_NT.sum().double()])
        routes = self._thresholds.setdefault(layer, {})
        routes[route] = routes[route] + new if route in routes else new

    def state(self) -> dict[str, list]:
        """The sums as plain numbers, for JSON; `add` takes them back exactly."""
        return {
            n: [
                self._weights[n].tolist(),
                self._active[n].tolist(),
                self._frames[n].tolist(),
                {route: sums.tolist() for route, sums in self._thresholds.get(n, {}).items()},
            ]
            for n in self._weights
        }

    def add(self, state: dict[str, list]) -> None:
        """Adds the sums of other batches."""
        for layer, values in state.items():
            for sums, value in zip((self._weights, self._active, self._frames), values):
                tensor = torch.tensor(value, dtype=torch.double)
                sums[layer] = sums[layer].cpu() + tensor if layer in sums else tensor
            for route, value in values[3].items() if len(values) > 3 else ():  # older versions kept no thresholds
                routes, tensor = self._thresholds.setdefault(layer, {}), torch.tensor(value, dtype=torch.double)
                routes[route] = routes[route].cpu() + tensor if route in routes else tensor

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

    def thresholds(self, layer: str) -> dict[str, float]:
        """Mean threshold of each route (global, local), or sparsity, that is not fixed, see `update_threshold`.

        Empty for layers that take their weights from others of their block.
        """
        return {route: float(sums[0] / sums[1]) for route, sums in sorted(self._thresholds.get(layer, {}).items())}

    def summary(self) -> dict:
        """Everything as plain numbers, for JSON; a domain that did not occur has no mean weights."""
        layers = {
            name: {
                "active_experts": self.active_experts(name),
                "thresholds": self.thresholds(name),
                "overall_weights": self.overall_weights(name).tolist(),
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

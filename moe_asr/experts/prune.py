"""Leaving out experts that get little weight.

Shape letters: E experts.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from moe_asr.errors import UserError
from moe_asr.experts.adapter import Adapter
from moe_asr.experts.attach import attach
from moe_asr.experts.statistics import RoutingStatistics


def choose_experts(adapter: Adapter, statistics: RoutingStatistics, drop: int) -> dict[str, list[int]]:
    """For each router the experts to keep: all but the `drop` ones with the smallest mean weight in its layers.

    Raises:
        UserError: not so many experts, or layers that the statistics have not seen
    """
    E = adapter.num_experts
    if not 0 <= drop < E:
        raise UserError(f"prune: {drop} of {E} experts cannot be dropped; drop from 0 to {E - 1}")
    kept = {}
    for key, router in adapter.routers.items():
        layers = [name for name, layer in adapter.layers.items() if layer.router is router]
        unseen = sorted(set(layers) - set(statistics.layers))
        if unseen:
            raise UserError(f"prune: there are no weights of layer {unseen[0]}; run the model on some utterances first")
        mean_E = torch.stack([statistics.overall_weights(name) for name in layers]).mean(0)
        order = mean_E.sort(descending=True, stable=True).indices
        kept[key] = sorted(order[: E - drop].tolist())
    return kept


@torch.no_grad()
def prune_experts(adapter: Adapter, kept: dict[str, list[int]]) -> Adapter:
    """An adapter of the kept experts alone, in place of the given one on its model.

    Each router goes without the rows of the others, and since `softmax(a)_e = exp(a_e) / sum_j exp(a_j)`, the weights
    that remain are the old ones, renormalised: `w_e / sum_{j kept} w_j` for the same input.

    Args:
        kept: for each router the experts that stay, of one number for all; see `choose_experts`

    Raises:
        UserError: a stack, or weights that are more than a softmax over the layer's own experts
    """
    adapter.check_single("prune")
    if any(spec.router.route != "local" or spec.router.select != "all" for spec in adapter.specs):
        raise UserError(
            "prune: only experts of a dense local router (route: local, select: all) can be left out; for others each "
            "stands for a domain, or the selection depends on their number"
        )
    state = {}
    for key, router in adapter.routers.items():
        for name, parameter in router.named_parameters():
            rows = kept[key] if name in ("local", "local_bias") else slice(None)
            state[f"{key}.router.{name}"] = parameter[rows].clone()
        for name, layer in adapter.layers.items():
            if layer.router is router:
                state[f"{name}.A"], state[f"{name}.B"] = layer.A[kept[key]], layer.B[kept[key]]
    count = {len(experts) for experts in kept.values()}
    assert len(count) == 1, "routers keep different numbers of experts"
    specs = [replace(spec, num_experts=min(count)) for spec in adapter.specs]
    pruned = attach(adapter.detach(), specs)
    pruned.load_state_dict(state)
    return pruned

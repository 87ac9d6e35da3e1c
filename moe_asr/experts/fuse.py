"""Several LoRAs on the same layers made into one: their weighted sum, exact or of a given rank.

Shapes: I input width, O output width, R rank, K sum of the ranks of all LoRAs of a layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moe_asr.config import from_plain
from moe_asr.errors import UserError
from moe_asr.experts.attach import layer_matches
from moe_asr.experts.layer import ExpertSpec
from moe_asr.experts.router_spec import RouterSpec

ALONE = RouterSpec(route="given", select="all")
"""The router of a single expert: no parameters, and a weight of 1."""


@dataclass(frozen=True)
class Lora:
    """One expert of an adapter.

    Args:
        name: for messages
        base: identity of its base
        specs: of the adapter
        layers: A (R, I) and B (R, O) of each layer
    """

    name: str
    base: str
    specs: tuple[ExpertSpec, ...]
    layers: dict[str, tuple[Tensor, Tensor]]

    def spec_of(self, layer: str) -> ExpertSpec:
        return next(spec for spec in self.specs if layer_matches(layer, spec.targets))


@dataclass(frozen=True)
class Fused:
    """Several LoRAs as one expert.

    Args:
        specs: of an adapter of this one expert
        state: its tensors, as `Adapter.state_dict` names them
        errors: |D - D_R| / |D| of each layer, Frobenius norms, for the sum D and what is left of it
        error: the same over all layers together
    """

    specs: tuple[ExpertSpec, ...]
    state: dict[str, Tensor]
    errors: dict[str, float]
    error: float


def read_loras(name: str, info: Mapping[str, Any], state: Mapping[str, Tensor]) -> list[Lora]:
    """Each expert of an adapter from what `read_adapter_info` and `read_adapter_tensors` gave, without routers."""
    specs = tuple(from_plain(ExpertSpec, spec) for spec in info["specs"])
    layers = [key.removesuffix(".A") for key in state if key.endswith(".A") and ".router." not in key]
    count = specs[0].num_experts
    return [
        Lora(
            name if count == 1 else f"{name}:{index}",
            info["base"],
            specs,
            {layer: (state[f"{layer}.A"][index], state[f"{layer}.B"][index]) for layer in layers},
        )
        for index in range(count)
    ]


def fuse(loras: Sequence[Lora], weights: Sequence[float], rank: int | None = None) -> Fused:
    """`D = sum_l w_l s_l B_l A_l` for each layer as one expert, s_l the scale alpha / rank of LoRA l.

    Without `rank`, exact: the A_l stand under each other, and so do the `w_l s_l / s_1 B_l`, in a rank that is the sum
    of all; s_1, the scale of the first, is that of the result. With it, the nearest sum of that rank in the Frobenius
    norm (Eckart and Young 1936), from its singular values; D itself is never formed: with QR factors
    `B = Q_B R_B, A^T = Q_A R_A` of the stacked ones, those of D are those of the K x K matrix `R_B R_A^T`. Singular
    values are shared evenly between A and B. LoRAs may differ in rank, scale and dropout; the first's dropout stays.

    Raises:
        UserError: no LoRAs, not a weight for each, another base, other layers, or layers of another size
    """
    _check(loras, weights, rank)
    first = loras[0]
    stacked = {}
    for layer in first.layers:
        scale = first.spec_of(layer).scale
        factors = [lora.spec_of(layer).scale / scale * weight for lora, weight in zip(loras, weights)]
        A_KI = torch.cat([lora.layers[layer][0].double() for lora in loras])
        B_KO = torch.cat([factor * lora.layers[layer][1].double() for factor, lora in zip(factors, loras)])
        stacked[layer] = A_KI, B_KO
    lost, whole = dict.fromkeys(stacked, 0.0), dict.fromkeys(stacked, 0.0)
    if rank is not None:
        for layer, (A_KI, B_KO) in stacked.items():
            *stacked[layer], lost[layer], whole[layer] = truncated(A_KI, B_KO, rank)
    scales = {layer: first.spec_of(layer).scale ** 2 for layer in stacked}
    specs, state = [], {}
    for spec in first.specs:
        inside = [layer for layer in stacked if first.spec_of(layer) is spec]
        new = rank or max(len(stacked[layer][0]) for layer in inside)
        specs.append(
            dataclasses.replace(
                spec,
                num_experts=1,
                rank=new,
                alpha=spec.scale * new,
                mixing="product",
                same_start=False,
                router=ALONE,
                memory_targets=(),
            )
        )
        for layer in inside:
            for name, part in zip("AB", stacked[layer]):
                like = first.layers[layer][0].dtype
                full = part.new_zeros(1, new, part.shape[1])
                full[0, : len(part)] = part
                state[f"{layer}.{name}"] = full.to(like)
    total = sum(scales[layer] * whole[layer] for layer in stacked)
    return Fused(
        tuple(specs),
        state,
        {layer: _ratio(lost[layer], whole[layer]) for layer in stacked},
        _ratio(sum(scales[layer] * lost[layer] for layer in stacked), total),
    )


def truncated(A_KI: Tensor, B_KO: Tensor, rank: int) -> tuple[Tensor, Tensor, float, float]:
    """A (R, I) and B (R, O) of the nearest `B^T A` of rank R, and |D - D_R|^2 and |D|^2 for D the given one.

    Fewer rows come back where K, I or O is below R: then nothing is lost.
    """
    QA_IK, RA_KK = torch.linalg.qr(A_KI.T)
    QB_OK, RB_KK = torch.linalg.qr(B_KO.T)
    U_KK, S_K, Vh_KK = torch.linalg.svd(RB_KK @ RA_KK.T, full_matrices=False)
    root_R = S_K[:rank].sqrt()
    A_RI = root_R[:, None] * (Vh_KK[:rank] @ QA_IK.T)
    B_RO = root_R[:, None] * (QB_OK @ U_KK[:, :rank]).T
    squares_K = S_K.square()
    return A_RI, B_RO, float(squares_K[rank:].sum()), float(squares_K.sum())


def _ratio(lost: float, whole: float) -> float:
    return (lost / whole) ** 0.5 if whole > 0 else 0.0


def _check(loras: Sequence[Lora], weights: Sequence[float], rank: int | None) -> None:
    if not loras:
        raise UserError("fuse: no adapters given")
    if len(weights) != len(loras):
        raise UserError(f"fuse: {len(weights)} weights for {len(loras)} experts; give one for each")
    if not all(abs(weight) < float("inf") for weight in weights):
        raise UserError("fuse: weights must be finite numbers")
    if rank is not None and rank < 1:
        raise UserError(f"fuse: rank must be at least 1, not {rank}")
    first = loras[0]
    for lora in loras[1:]:
        if lora.base != first.base:
            raise UserError(
                f"fuse: {first.name} and {lora.name} belong to different base models ({first.base[:12]} and "
                f"{lora.base[:12]}): fuse experts of one base"
            )
        if differing := lora.layers.keys() ^ first.layers.keys():
            name = min(differing)
            has, lacks = (lora, first) if name in lora.layers else (first, lora)
            raise UserError(f"fuse: {has.name} has an expert on {name}, {lacks.name} has none: train both on one base "
                            "with the same targets")  # fmt: skip
        for layer, (A, B) in lora.layers.items():
            sizes = [(a.shape[1], b.shape[1]) for a, b in (first.layers[layer], (A, B))]
            if sizes[0] != sizes[1]:
                raise UserError(
                    f"fuse: {layer} goes from {sizes[0][0]} to {sizes[0][1]} in {first.name}, from {sizes[1][0]} to "
                    f"{sizes[1][1]} in {lora.name}"
                )

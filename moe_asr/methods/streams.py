"""Experts on layers that see sequences of different lengths: encoder frames, projected frames, tokens."""

from __future__ import annotations

import dataclasses

from moe_asr.errors import UserError
from moe_asr.experts import ExpertSpec, matching_layers
from moe_asr.models.interface import Recogniser


def split_by_stream(recogniser: Recogniser, spec: ExpertSpec) -> tuple[ExpertSpec, ...]:
    """The same experts as one spec for each stream of the recogniser that its layers lie in.

    Routers that layers share (see `RouterSpec.scope`) are shared within a stream. Layers of `memory_targets` go with
    the other layers of their block.

    Raises:
        UserError: a router pools over tokens, which are not all known in decoding; see also `matching_layers`
    """
    memory = set(matching_layers(recogniser, spec.memory_targets)) if spec.memory_targets else set()
    names = matching_layers(recogniser, spec.targets)
    of_block = {_block(name): recogniser.stream_of(name) for name in names if name not in memory}
    layers: dict[str, list[str]] = {}  # of each stream
    for name in names:
        stream = of_block.get(_block(name)) if name in memory else None
        layers.setdefault(stream or recogniser.stream_of(name), []).append(name)
    for stream in recogniser.text_streams & layers.keys():
        if spec.router.pools_frames:
            raise UserError(
                f"experts: layer {layers[stream][0]} sees tokens, and this router pools over frames, which for tokens "
                "are not all there yet in decoding: set router threshold_over: frame and granularity: frame (or "
                "source: memory), or targets to other layers"
            )
    return tuple(
        dataclasses.replace(
            spec,
            targets=_targets(recogniser, spec.targets, names, inside),
            memory_targets=_targets(recogniser, spec.memory_targets, names, inside),
            stream=stream,
        )
        for stream, inside in layers.items()
    )


def _targets(
    recogniser: Recogniser, targets: tuple[str, ...], layers: list[str], inside: list[str]
) -> tuple[str, ...]:
    """What matches those of the layers that are inside; a target that reaches beyond them gives way to names."""
    found: dict[str, None] = {}  # an ordered set
    for target in targets:
        matches = [name for name in matching_layers(recogniser, [target]) if name in layers]
        own = [name for name in matches if name in inside]
        found.update(dict.fromkeys([target] if len(own) == len(matches) else own))
    return tuple(found)


def _block(layer: str) -> str:
    return layer.rpartition(".")[0]

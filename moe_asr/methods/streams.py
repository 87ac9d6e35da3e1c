"""Experts on layers that see sequences of different lengths: encoder frames, projected frames, tokens."""

from __future__ import annotations

import dataclasses

from moe_asr.errors import UserError
from moe_asr.experts import ExpertSpec, RouterSpec, matching_layers
from moe_asr.models.interface import Recogniser
from moe_asr.models.speech_llm import SpeechLLM


def split_by_stream(recogniser: Recogniser, spec: ExpertSpec) -> tuple[ExpertSpec, ...]:
    """The same experts as one spec for each stream of the recogniser that its layers lie in.

    Routers that layers share (see `RouterSpec.scope`) are shared within a stream. Layers of `memory_targets` go with
    the other layers of their block.

    Raises:
        UserError: a router pools over tokens that are not known in decoding, or over a memory of another width than its
            layers; see also `matching_layers`
    """
    memory = set(matching_layers(recogniser, spec.memory_targets)) if spec.memory_targets else set()
    names = matching_layers(recogniser, spec.targets)
    of_block = {_block(name): recogniser.stream_of(name) for name in names if name not in memory}
    layers: dict[str, list[str]] = {}  # of each stream
    for name in names:
        stream = of_block.get(_block(name)) if name in memory else None
        layers.setdefault(stream or recogniser.stream_of(name), []).append(name)
    if spec.router.needs_memory:
        _check_widths(recogniser, names)
    for stream in recogniser.text_streams & layers.keys():
        _check_text(recogniser, spec.router, layers[stream][0])
    return tuple(
        dataclasses.replace(
            spec,
            targets=_targets(recogniser, spec.targets, names, inside),
            memory_targets=_targets(recogniser, spec.memory_targets, names, inside),
            stream=stream,
        )
        for stream, inside in layers.items()
    )


def _check_widths(recogniser: Recogniser, layers: list[str]) -> None:
    """A router has one width for its layers' input and the memory."""
    for name in layers:
        width = recogniser.get_submodule(name).in_features
        if width != recogniser.encoder.width:
            raise UserError(
                f"experts: layer {name} takes input of width {width}, but the encoder's states, which this router "
                f"looks at, are of width {recogniser.encoder.width}: set router granularity: frame and source: layer, "
                "or targets to layers of that width"
            )


def _check_text(recogniser: Recogniser, router: RouterSpec, layer: str) -> None:
    if isinstance(recogniser, SpeechLLM):
        if router.pools_frames:
            raise UserError(
                f"experts: layer {layer} sees tokens, and this router pools over frames, but a language model decodes "
                "token by token and keeps a cache: set router threshold_over: frame and granularity: frame, or targets "
                "to other layers"
            )
    elif router.looks_ahead:
        raise UserError(
            f"experts: layer {layer} sees tokens, and this router pools over frames, which for tokens are not all "
            "there yet in decoding: set router threshold_over: frame and granularity: frame (or over: prefix, or "
            "source: memory), or targets to other layers"
        )


def _targets(recogniser: Recogniser, targets: tuple[str, ...], layers: list[str], inside: list[str]) -> tuple[str, ...]:
    """What matches those of the layers that are inside; a target that reaches beyond them gives way to names."""
    found: dict[str, None] = {}  # an ordered set
    for target in targets:
        matches = [name for name in matching_layers(recogniser, [target]) if name in layers]
        own = [name for name in matches if name in inside]
        found.update(dict.fromkeys([target] if len(own) == len(matches) else own))
    return tuple(found)


def _block(layer: str) -> str:
    return layer.rpartition(".")[0]

"""Quantising a model in place, and back."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

import torch
from torch import nn

from moe_asr.errors import UserError
from moe_asr.quant.config import QuantConfig
from moe_asr.quant.layers import Nf4Layer, can_pack, pack, unpack

_DEFAULT = r"(?!(.*\.)?(\w*head|proj_out|embed_positions)$).*"


def quantise(model: nn.Module, config: QuantConfig = QuantConfig()) -> list[str]:
    """Puts the weights of all layers that match into 4 bits, in place; biases and all else stay as they are.

        quantise(model)
        adapter = attach(model, ExpertSpec(...))

    What is in 4 bits is no parameter any more and cannot be trained; experts on top of it can. A simulated one is a
    frozen parameter. A model on the device `meta` gets buffers of the right shapes, ready to be loaded.

    Returns:
        names of the layers

    Raises:
        UserError: a target matches nothing, a weight is not finite, the model is quantised already or has experts
    """
    for name, module in model.named_modules():
        if isinstance(module, Nf4Layer):
            raise UserError(f"quantise: {name} is in 4 bits already; dequantise the model first")
        if hasattr(module, "base") and hasattr(module, "A"):
            raise UserError(f"quantise: {name} has experts already; quantise the model first, then attach experts")
    names = matching_layers(model, config.targets)
    layers = {id(layer): (name, layer) for name in names if (layer := model.get_submodule(name))}
    for name, layer in layers.values():
        if not (layer.weight.is_meta or layer.weight.isfinite().all()):
            raise UserError(f"quantise: the weight of {name} is not finite")
    with torch.no_grad():
        for _, layer in layers.values():
            pack(layer, config.block, config.double)
            if config.simulate:
                unpack(layer)
    return names


def dequantise(model: nn.Module) -> nn.Module:
    """Makes all 4-bit layers plain ones with frozen weights of the same values, in place, below experts too.

    The model computes the same, faster and in eight times the memory.
    """
    for module in list(model.modules()):
        if isinstance(module, Nf4Layer):
            unpack(module)
    return model


def is_quantised(model: nn.Module) -> bool:
    """Whether any weight is stored in 4 bits; a simulation is not."""
    return any(isinstance(module, Nf4Layer) for module in model.modules())


def bits_per_weight(model: nn.Module) -> float:
    """What is stored for the quantised weights, codes and scales, over their number."""
    layers = [module for module in model.modules() if isinstance(module, Nf4Layer)]
    stored = sum(buffer.nbytes for layer in layers for buffer in layer.stored().values())
    return 8 * stored / max(1, sum(layer.weight_shape.numel() for layer in layers))


def num_parameters(model: nn.Module, without: Iterable[str] = ()) -> int:
    """Its parameters, trained or not, with those that are packed.

    Args:
        without: beginnings of the names of those that do not count
    """
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    packed = {name: m.weight_shape.numel() for name, m in model.named_modules() if isinstance(m, Nf4Layer)}
    left_out = tuple(without)
    return sum(n for part in (sizes, packed) for name, n in part.items() if not name.startswith(left_out))


def matching_layers(model: nn.Module, targets: Iterable[str]) -> list[str]:
    """Names of the layers that targets of a `QuantConfig` match, in the model's order.

    Raises:
        UserError: a target matches nothing, or is no regular expression
    """
    layers = {name: None for name, module in model.named_modules(remove_duplicate=False) if can_pack(module)}
    found: set[str] = set()
    for target in targets:
        pattern = _DEFAULT if target == "default" else target
        try:
            hits = [name for name in layers if f".{name}".endswith(f".{target}") or re.fullmatch(pattern, name)]
        except re.error as error:
            raise UserError(f"quantisation target '{target}' is no regular expression: {error}") from None
        if not hits:
            endings = dict.fromkeys(name.rpartition(".")[2] for name in layers)
            near = difflib.get_close_matches(target, endings, n=3, cutoff=0.5) or list(endings)[:6]
            raise UserError(
                f"quantisation target '{target}' matches no linear, convolution or embedding layer; "
                f"those here are called {', '.join(near) or '(there are none)'}"
            )
        found.update(hits)
    return [name for name in layers if name in found]

"""Layers that keep their weight in 4 bits and dequantise it anew each time they use it.

Shapes: O output width, I input width, M rows of input, D width of an embedding; see `nf4` for W, S and P.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from moe_asr.quant.nf4 import dequantise_absmax, dequantise_nf4, pick_nf4, quantise_absmax, quantise_nf4


class Nf4Layer(nn.Module):
    """A layer without a parameter `weight`, but with a property that makes it out of two buffers.

    `codes` (P, uint8) and `absmax` (S, float32) are all that is stored; with double quantisation `absmax` holds 8-bit
    codes and `absmax_scale`, `absmax_offset` are stored too. They are ordinary buffers of the state dict. The weight
    has the type of the scales, so that casting the model casts it. It has no gradient.
    """

    plain: type[nn.Module]
    """What such a layer was before and is again after `unpack`."""
    weight_shape: torch.Size
    block: int

    @property
    def weight(self) -> Tensor:
        return self.dequantise()

    def dequantise(self) -> Tensor:
        """The whole weight, a new tensor."""
        return dequantise_nf4(self.codes, self.scales(), self.weight_shape, self.block)

    def scales(self) -> Tensor:
        """absmax_S, dequantised where it is quantised itself."""
        if self.absmax.is_floating_point():
            return self.absmax
        return dequantise_absmax(self.absmax, self.absmax_scale, self.absmax_offset)

    def stored(self) -> dict[str, Tensor]:
        """The buffers that hold the weight."""
        names = ("codes", "absmax", "absmax_scale", "absmax_offset")
        return {name: self._buffers[name] for name in names if name in self._buffers}


class Nf4Linear(Nf4Layer):
    """`y = W x + b` with W in 4 bits; backward gives gradients to x and b, and keeps nothing for that but the codes.

    It is no `nn.Linear`, because who asks for that may want to write to the weight.
    """

    plain = nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        return _Product.apply(x, self.bias, self)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class Nf4Embedding(Nf4Layer):
    """`y = W[index]`, dequantising only the rows looked up."""

    plain = nn.Embedding

    def forward(self, index: Tensor) -> Tensor:
        columns_D = torch.arange(self.embedding_dim, device=index.device)
        positions = index.unsqueeze(-1) * self.embedding_dim + columns_D
        return pick_nf4(self.codes, self.scales(), positions, self.block)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"


@functools.cache
def _nf4_class(plain: type[nn.Module]) -> type[Nf4Layer] | None:
    """The kind of layer that takes the place of a plain one; None if there is none.

    A convolution, of whatever subclass, runs its own forward on the dequantised weight, and keeps it for backward as it
    keeps any weight: those that are trained through are depthwise and small.
    """
    if issubclass(plain, nn.Conv1d):
        return type(f"Nf4{plain.__name__}", (Nf4Layer, plain), {"plain": plain})
    return {nn.Linear: Nf4Linear, nn.Embedding: Nf4Embedding}.get(plain)


def can_pack(module: nn.Module) -> bool:
    """Whether `pack` knows this kind of layer; an embedding with `max_norm` is none, for it writes to its weight."""
    if isinstance(module, Nf4Layer) or getattr(module, "max_norm", None) is not None:
        return False
    return _nf4_class(type(module)) is not None


def pack(module: nn.Module, block: int, double: bool) -> None:
    """Turns a linear, convolution or embedding layer into one that stores 4 bits, in place; also on `meta`."""
    weight = module.weight.detach()
    codes, absmax = quantise_nf4(weight, block)
    buffers = {"codes": codes, "absmax": absmax}
    if double:
        buffers.update(zip(("absmax", "absmax_scale", "absmax_offset"), quantise_absmax(absmax)))
    del module.weight
    module.__class__ = _nf4_class(type(module))
    module.weight_shape, module.block = weight.shape, block
    for name, buffer in buffers.items():
        # A weight of 16 bits has an absmax that fits into 16 bits.
        module.register_buffer(name, buffer.to(weight.dtype) if buffer.is_floating_point() else buffer)


def unpack(module: Nf4Layer) -> None:
    """The inverse of `pack`: a plain layer again, its weight a frozen parameter with the values it had in 4 bits."""
    weight = nn.Parameter(module.dequantise(), requires_grad=False)
    for name in module.stored():
        delattr(module, name)
    del module.weight_shape, module.block
    module.__class__ = module.plain
    others = dict(module._parameters)
    module._parameters.clear()  # so that the weight comes first, as ever
    module.weight = weight
    module._parameters.update(others)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, bias, layer):
        ctx.layer, ctx.bias_type = layer, None if bias is None else bias.dtype
        return F.linear(x, layer.weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        need_x, need_bias, _ = ctx.needs_input_grad
        dx = dy @ ctx.layer.weight.to(dy.dtype) if need_x else None
        dbias = dy.flatten(0, -2).sum(0).to(ctx.bias_type) if need_bias else None
        return dx, dbias, None

"""Speed, size and exactness of weights in 4 bits (NF4), against fp32 and against bitsandbytes.

    python tools/bench/nf4.py --check

Shapes: N utterances, T frames, I input width, V vocabulary, d width of a square layer.
"""

from __future__ import annotations

from typing import Callable, Optional, TypeVar

import torch
from common import Call, Row, main, paired
from expert_layer import Linear, mixing_layer, step
from torch import Tensor, nn
from torch.nn import functional as F

from moe_asr.quant import QuantConfig, bits_per_weight, quantise
from moe_asr.quant.nf4 import quantise_nf4

M = TypeVar("M", bound=nn.Module)


def packed(module: M, double: bool = False) -> M:
    quantise(nn.Sequential(module), QuantConfig(double=double))
    return module


def against_fp32(
    name: str, make: Callable[[], tuple[nn.Module, nn.Module]], d: int, frames: int, bar: Optional[float] = None
) -> Row:
    """Forward and backward of two layers on the same frames."""

    def build() -> tuple[Call, Call]:
        x = torch.randn(1, frames, d)
        ours, theirs = make()
        return step(ours, x), step(theirs, x)

    return Row(f"{name}, d = {d}", paired(build), bar)


def linears(d: int, frames: int) -> list[Row]:
    def on_nf4() -> nn.Module:
        layer = mixing_layer(d, frames)
        packed(layer.base)
        return layer

    def plain(double: bool = False) -> tuple[nn.Module, nn.Module]:
        return packed(Linear(d), double), Linear(d)

    return [
        against_fp32("NF4 linear / fp32 linear", plain, d, frames, 1.10),
        against_fp32("NF4 linear, scales in 8 bits / fp32 linear", lambda: plain(double=True), d, frames),
        against_fp32("experts on NF4 / experts on fp32", lambda: (on_nf4(), mixing_layer(d, frames)), d, frames),
    ]


def one_frame(d: int) -> Row:
    def build() -> tuple[Call, Call]:
        x, ours, theirs = torch.randn(1, 1, d), packed(Linear(d)), Linear(d)
        return torch.no_grad()(lambda: ours(x)), torch.no_grad()(lambda: theirs(x))

    return Row(f"NF4 linear / fp32 linear, forward of one frame, d = {d}", paired(build))


def embedding(vocab_size: int, d: int) -> Row:
    """What a batch of texts does with an embedding that is the output layer too."""

    def build() -> tuple[Call, Call]:
        tokens, hidden = torch.randint(vocab_size, (8, 50)), torch.randn(8, 50, d)

        def call(layer: nn.Module) -> Callable[[], tuple[Tensor, Tensor]]:
            return torch.no_grad()(lambda: (layer(tokens), F.linear(hidden, layer.weight)))

        return call(packed(nn.Embedding(vocab_size, d))), call(nn.Embedding(vocab_size, d))

    return Row(f"NF4 embedding / fp32 embedding, look-up and logits, V = {vocab_size}, d = {d}", paired(build))


def size(d: int) -> list[Row]:
    def off(rounds: int) -> list[float]:
        return [abs(bits_per_weight(packed(Linear(d))) - 4.5)]

    def double(rounds: int) -> list[float]:
        return [bits_per_weight(packed(Linear(d), double=True))]

    return [
        Row(f"bits per weight, distance from 4.5, d = {d}", off, 0.01, "bits"),
        Row(f"bits per weight, scales in 8 bits, d = {d}", double, None, "bits"),
    ]


def against_bitsandbytes(name: str, shape: tuple[int, ...], block: int) -> Row:
    def measure(rounds: int) -> list[float]:
        from bitsandbytes.functional import quantize_4bit

        weight = torch.randn(shape) * torch.rand(shape[0]).view(-1, *[1] * (len(shape) - 1))
        codes, absmax = quantise_nf4(weight, block)
        theirs, state = quantize_4bit(weight, blocksize=block, quant_type="nf4")
        return [float((codes != theirs.flatten()).sum() + (absmax != state.absmax).sum())]

    return Row(f"codes and scales unlike bitsandbytes, {name}, block {block}", measure, 0, "numbers")


def make_rows(quick: bool) -> list[Row]:
    frames, small, large, vocab_size = (30, 32, 64, 100) if quick else (1500, 384, 1280, 51864)
    rows = linears(large, frames) + [one_frame(large), embedding(vocab_size, small)] + size(large)
    rows += [against_bitsandbytes(f"{large} x {large}", (large, large), block) for block in (32, 64, 128)]
    rows += [against_bitsandbytes(f"{small} x 1 x 15", (small, 1, 15), 64)]  # a depthwise convolution, with a tail
    return rows


if __name__ == "__main__":
    main(make_rows, "Weights in 4 bits: CPU time, forward and backward unless said otherwise; lower is better at '<='.")

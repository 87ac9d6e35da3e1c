"""What of a model is quantised, and how."""

from __future__ import annotations

from dataclasses import dataclass

from moe_asr.errors import UserError


@dataclass(frozen=True)
class QuantConfig:
    """Weights in 4 bits (NF4).

    Args:
        targets: linear, 1-d convolution and embedding layers are quantised if their names end with one of these, or if
            one matches the whole name as a regex; [default] takes all but output heads and position embeddings
        block: weights that share one scale, even
        double: store the scales in 8 bits instead of 32 (double quantisation)
        simulate: quantise, dequantise and keep 32 bits, to see the loss of accuracy without the gain in size
    """

    targets: tuple[str, ...] = ("default",)
    block: int = 64
    double: bool = False
    simulate: bool = False

    def __post_init__(self) -> None:
        if not self.targets:
            raise UserError("quantisation: targets is empty; name the layers to quantise, or leave it out for all")
        if self.block < 2 or self.block % 2:
            raise UserError(f"quantisation: block must be even and at least 2, not {self.block}")

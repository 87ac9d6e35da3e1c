"""Models with weights in 4 bits (NF4): stored packed, dequantised layer by layer in use."""

from moe_asr.quant.config import QuantConfig
from moe_asr.quant.convert import bits_per_weight, dequantise, is_quantised, matching_layers, num_parameters, quantise
from moe_asr.quant.layers import Nf4Embedding, Nf4Layer, Nf4Linear

__all__ = [
    "Nf4Embedding",
    "Nf4Layer",
    "Nf4Linear",
    "QuantConfig",
    "bits_per_weight",
    "dequantise",
    "is_quantised",
    "matching_layers",
    "num_parameters",
    "quantise",
]

"""HDMoLE (arXiv 2409.19878): mixture of LoRA experts with hierarchical routing and dynamic thresholds, for accents.

What the paper establishes: experts correspond to accent domains; routing is hierarchical, a global router (an accent
recogniser, trained first, frozen, shared by all layers) above a local one in each layer; dynamic thresholds at each
layer replace Top-K. The formulas in `moe_asr.experts.routers` are our reading of that.

| part | here |
| --- | --- |
| router | hierarchical: posteriors of the accent recogniser, and a softmax over each layer's own input |
| mixing | product, weights for each frame |
| initialisation | zero, or LoRAs trained on single accents first (`Adapter.set_expert`) |
| stages | general model; accent recogniser; (single-accent LoRAs;) experts on all accents pooled; decode; score |

Shapes: N utterances, E experts.
"""

from __future__ import annotations

import math

from torch import Tensor

from moe_asr.experts import RouterSpec

# The router of HDMoLE, and those of the methods it is compared with.
ROUTERS = {
    "hdmole": RouterSpec(),
    "hdmole_without_global": RouterSpec(route="local"),
    "hdmole_without_local": RouterSpec(route="given"),
    "hdmole_fixed_threshold": RouterSpec(threshold="fixed"),
    "adamole": RouterSpec(route="local"),
    "dense": RouterSpec(route="local", select="all"),
    "top1": RouterSpec(route="local", select="topk", top_k=1),
    "top2": RouterSpec(route="local", select="topk", top_k=2),
    "sparsegen": RouterSpec(route="local", select="sparsegen"),
    "given": RouterSpec(route="given", select="all"),
}


def entropy_fallback(domains_NE: Tensor, strength: float) -> Tensor:
    """Scale of the experts (N) that falls towards the base model where the accent is uncertain.

    `(1 - H(g) / ln E)^strength` with H the entropy of the posteriors: 1 for a certain accent, 0 for a uniform one;
    strength 0 is no fallback. Our reading: the paper does not describe one.
    """
    entropy_N = -(domains_NE * domains_NE.clamp_min(1e-30).log()).sum(-1)
    return (1 - entropy_N / math.log(domains_NE.shape[-1])).clamp(0, 1) ** strength

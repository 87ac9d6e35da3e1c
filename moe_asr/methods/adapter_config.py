"""What the subcommands of `bin/adapter` can be told; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional


@dataclass(frozen=True)
class FuseConfig:
    """Writes the weighted sum of LoRAs on one base as an adaptation of one expert, and says how exact it is.

    Args:
        out_dir: adaptation folder to write
        adaptations: adaptation folders; of one with several experts all are taken, in their order, or one alone as
            FOLDER:NUMBER or FOLDER:DOMAIN
        weights: one for each expert, as [0.7,0.3]; equal ones that sum to 1 by default
        rank: of the sum, the nearest of this rank (singular values); by default exact, in the sum of all ranks
    """

    out_dir: str
    adaptations: list[str] = field(default_factory=list, metadata={"positional": True})
    weights: Optional[list[float]] = None
    rank: Optional[int] = None


@dataclass(frozen=True)
class AverageConfig:
    """Writes the mean of LoRAs on one base as an adaptation of one expert: fuse with equal weights.

    Args:
        out_dir: as for fuse
        adaptations: as for fuse
        rank: as for fuse
    """

    out_dir: str
    adaptations: list[str] = field(default_factory=list, metadata={"positional": True})
    rank: Optional[int] = None

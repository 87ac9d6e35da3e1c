"""What the subcommands of `bin/adapter` can be told; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Optional


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


@dataclass(frozen=True)
class ShowConfig:
    """Says what an adaptation is: experts, layers, size, its base, and how it was made.

    Args:
        adaptation: adaptation folder
        model: model folder that is compared with its base
    """

    adaptation: str = field(metadata={"positional": True})
    model: Optional[str] = None


@dataclass(frozen=True)
class MergeConfig:
    """Writes base and experts as one plain model, in our format or as a Whisper folder of transformers.

    Args:
        model: model folder of the base
        adaptation: adaptation folder
        out_dir: folder to write
        weights: one for each expert, as [0.7,0.3]
        expert: number or domain of the one expert that is taken
        format: moe_asr or transformers
    """

    model: str
    adaptation: str
    out_dir: str
    weights: Optional[list[float]] = None
    expert: Optional[str] = None
    format: Literal["moe_asr", "transformers"] = "moe_asr"


@dataclass(frozen=True)
class ExportConfig:
    """Writes one expert in the format of PEFT, for the model of transformers that the base was taken from.

    Args:
        model: model folder of the base
        adaptation: adaptation folder
        out_dir: folder to write
        expert: number or domain of the expert, where there are several
    """

    model: str
    adaptation: str
    out_dir: str
    expert: Optional[str] = None


@dataclass(frozen=True)
class ImportConfig:
    """Makes an adaptation of one expert from a LoRA in the format of PEFT.

    Args:
        model: model folder of the base, taken from the model that the LoRA was trained on
        lora: folder with adapter_config.json and adapter_model.safetensors
        out_dir: adaptation folder to write
        domain_key: the label of utterances that it is for
    """

    model: str
    lora: str
    out_dir: str
    domain_key: Literal["accent", "speaker", "language"] = "language"

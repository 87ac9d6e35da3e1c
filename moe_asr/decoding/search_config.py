"""What a search is told, and what it finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Optional

from moe_asr.errors import UserError

Kind = Literal["greedy", "prefix_beam", "beam", "rescore", "lattice", "lattice_rescore"]


@dataclass(frozen=True)
class SearchConfig:
    """How hypotheses are found.

    Args:
        kind: `greedy` takes the best token each time, or the best CTC alignment where there is no decoder;
            `prefix_beam` sums over the CTC alignments of a text; `beam` searches with the decoder, together with CTC if
            ctc_weight is above 0; `rescore` lets the decoder choose among the texts of a `prefix_beam`; `lattice` and
            `lattice_rescore` take the texts from a k2 lattice instead
        beam: hypotheses kept in each step of a beam search, and texts that the decoder chooses from
        candidates: most probable tokens by which a hypothesis is extended in CTC search, alone or with a decoder; 0
            takes all
        length_bonus: added to the log-probability of a hypothesis for each of its tokens
        length_penalty: a in log P / length^a, by which `beam` compares hypotheses, the end counted as a token
        ctc_weight: w in (1 - w) log P of the decoder + w log P of CTC, from 0 up to below 1
        lang: lang folder whose graph a lattice is made with; without one any tokens may follow each other
        lm_scale: factor on the log-probabilities of the language model in that graph
    """

    kind: Kind = "greedy"
    beam: int = 8
    candidates: int = 20
    length_bonus: float = 0.0
    length_penalty: float = 1.0
    ctc_weight: float = 0.0
    lang: Optional[str] = None
    lm_scale: float = 1.0

    def __post_init__(self):
        if self.beam < 1:
            raise UserError(f"search: beam must be at least 1, not {self.beam}")
        if self.candidates < 0:
            raise UserError(f"search: candidates must not be negative, but is {self.candidates}")
        if self.ctc_weight and self.kind not in ("beam", "rescore", "lattice_rescore"):
            raise UserError(f"search: ctc_weight is for a decoder and CTC together, not for {self.kind}: set kind beam")
        if self.lang and self.kind not in ("lattice", "lattice_rescore"):
            raise UserError(f"search: a lang folder is for lattices, not for {self.kind}; set kind: lattice")
        if not 0 <= self.ctc_weight < 1:
            raise UserError(
                f"search: ctc_weight must be at least 0 and below 1, not {self.ctc_weight}; prefix_beam is CTC alone"
            )


@dataclass(frozen=True)
class Scored:
    """A hypothesis.

    Args:
        tokens: without start and end
        score: what the search ranks by, at best log P(tokens | x); None where it has not been computed
        truncated: whether it was cut off at the limit on tokens
        language: code of the language that was detected; None where none was
        language_probability: of that language
    """

    tokens: tuple[int, ...]
    score: Optional[float] = None
    truncated: bool = False
    language: Optional[str] = None
    language_probability: Optional[float] = None

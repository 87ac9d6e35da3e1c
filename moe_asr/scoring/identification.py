"""How well a model that was not told the language has told it."""

from __future__ import annotations

from collections.abc import Sequence

from moe_asr.data.languages import find_language
from moe_asr.scoring.classification import Classification, Classified, classification
from moe_asr.scoring.hypotheses import Hypothesis


def identification(hypotheses: Sequence[Hypothesis], replications: int = 1000) -> Classification | None:
    """Accuracy of the detected languages; None where none was detected.

    A label such as zh-CN is right with zh, as for `find_language`. Utterances without a label do not count.
    """
    told = [h for h in hypotheses if h.detected and h.language]
    codes = {h.detected for h in told}
    found = [Classified(h.id, find_language(codes, h.language) or h.language, h.detected, h.speaker) for h in told]
    if not found:
        return None
    classes = sorted({one.label for one in found} | {one.guess for one in found})
    return classification(found, classes, replications)

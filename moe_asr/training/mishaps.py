"""What goes wrong in training and is survived, put into words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from moe_asr.training.update import Update


def loading_troubles(batches: Iterable) -> list[dict]:
    """What went wrong while these batches were loaded: `reason`, and `ids` of utterances left out."""
    troubles = [trouble for batch in batches for trouble in getattr(batch, "troubles", ())]
    return [{"reason": trouble.reason, "ids": list(trouble.left_out)} for trouble in troubles]


def trouble_line(number: int, trouble: dict) -> str:
    """A line that tells of the run's trouble `number`."""
    ids = trouble["ids"]
    of = f" ({len(ids)} utterances, see skipped.jsonl)" if len(ids) > 1 else f" ({ids[0]})" if ids else ""
    return f"trouble {number}: {trouble['reason']}{of}"


def why_not_made(update: Update, ids: Sequence[str]) -> tuple[dict, str, str]:
    """Of an update that was not made, with the utterances at fault: what to record of it, why it was not made, and what
    to say when there are too many of them in a row."""
    if not ids or not update.sums.count:
        reason = "none of its utterances could be used"
        return {"empty": True, "ids": list(ids)}, reason, "had no utterance that could be used; see skipped.jsonl"
    what = "gradient" if math.isfinite(update.sums.total) else "loss"
    return (
        {"not_finite": what, "ids": list(ids)},
        f"{what} not finite ({len(ids)} utterances, see skipped.jsonl)",
        f"had a non-finite loss or gradient, last with {ids[0]}; lower the learning rate, or look at the utterances in"
        " skipped.jsonl",
    )

"""Labels of utterances, looked at before anything is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Iterable, Sequence

from moe_asr.data.manifests import Utterance
from moe_asr.errors import UserError


def check_labels(
    utterances: Iterable[Utterance], key: str, domains: Sequence[str], manifest: str | Path, knower: str, instead: str
) -> None:
    """Refuses utterances whose label is none of the domains.

    Args:
        key: what is labelled: speaker, accent or language
        manifest: where the utterances are from
        knower: folder whose domains these are
        instead: what to do if the labels are right

    Raises:
        UserError: names the first unknown labels
    """
    unknown = sorted({getattr(utterance, key) for utterance in utterances} - set(domains))
    if unknown:
        raise UserError(
            f"{manifest}: {key} {', '.join(map(repr, unknown[:5]))} is none that {knower} knows, which are "
            f"{', '.join(domains)}: correct the labels, or set {instead}"
        )

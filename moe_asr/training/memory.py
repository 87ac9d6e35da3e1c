"""Batches that do not fit into memory are computed in smaller parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Piece:
    """A batch of an update, or a part of one that did not fit into memory.

    Args:
        number: the batch's number in its epoch
        batch: the utterances
        path: which part it is: halves of halves are "/0/1", the batch itself is ""
    """

    number: int
    batch: Any
    path: str = ""


def out_of_memory(error: BaseException) -> bool:
    """Whether that is what `error` says; memory of a GPU or of the machine."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def in_pieces(
    pieces: Sequence[Piece], compute: Callable[[Piece], Any], again: Callable[[], None], say: Callable[[str, Any], None]
) -> list[tuple[int, Any]]:
    """`compute` of all pieces; where one does not fit into memory all is computed again with that one in halves.

    Losses are sums over utterances, so parts give the same up to rounding and to what is drawn at random. An utterance
    that does not fit alone is left out.

    Args:
        again: undoes what was computed before, such as gradients
        say: is told of each batch that did not fit: what becomes of it, and the batch

    Returns:
        pairs of a batch's number and a result, in the order of the batches
    """
    pieces = list(pieces)
    while True:
        results, failed = [], None
        for index, piece in enumerate(pieces):
            try:
                results.append((piece.number, compute(piece)))
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                failed = index
                break
        if failed is None:
            return results
        del results  # and with them their graphs
        again()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        piece = pieces[failed]
        size = len(piece.batch.ids)
        if size > 1 and hasattr(piece.batch, "part"):
            say("out of memory: computed in two parts", piece.batch)
            cuts = (slice(0, size // 2), slice(size // 2, size))
            parts = [Piece(piece.number, piece.batch.part(cut), f"{piece.path}/{i}") for i, cut in enumerate(cuts)]
        else:
            say("out of memory: left out", piece.batch)
            parts = []
        pieces[failed : failed + 1] = parts

"""What teachers say of each utterance, kept in a file, so that they need to say it once only.

Shape letters: P positions of all utterances, K tokens kept, M positions of a batch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from moe_asr.errors import UserError
from moe_asr.files import atomic_write
from moe_asr.losses.top_tokens import TopTokens

_NAMES = ("ids", "log_p", "log_rest")


class TeacherCache:
    """Best tokens of the teacher for each position of each utterance, by the utterance's id.

    The file holds `ids` (P, K, int32), `log_p` (P, K) and `log_rest` (P), utterance after utterance, and as JSON beside
    them the ids and positions of the utterances and what all this was made from.

    Args:
        path: the file
        identity: of base, teachers, data and settings; a file of another one is refused

    Raises:
        UserError: it was made from something else, or is damaged
    """

    def __init__(self, path: str | Path, identity: dict[str, Any]) -> None:
        self.path, self._identity = Path(path), json.loads(json.dumps(identity))
        self._tensors: dict[str, Tensor] = {}
        self._places: dict[str, slice] = {}
        if self.path.is_file():
            self._read()

    @property
    def filled(self) -> bool:
        return bool(self._places)

    def fill(self, parts: Iterable[tuple[Sequence[str], Sequence[int], TopTokens]]) -> None:
        """Writes the file, atomically.

        Args:
            parts: of each batch the ids of its utterances, their positions, and what the teacher says there
        """
        rows: dict[str, list[Tensor]] = {name: [] for name in _NAMES}
        utterances: list[tuple[str, int]] = []
        for ids, counts, top in parts:
            utterances += zip(ids, map(int, counts))
            for name, tensor in zip(_NAMES, (top.ids_MK.int(), top.log_p_MK, top.log_rest_M)):
                rows[name].append(tensor.cpu())
        tensors = {name: torch.cat(parts) for name, parts in rows.items()}
        about = {"identity": json.dumps(self._identity), "utterances": json.dumps(utterances)}
        with atomic_write(self.path, "wb") as file:
            file.write(save(tensors, metadata=about))
        self._read()

    def __call__(self, ids: Sequence[str], counts: Tensor) -> TopTokens:
        """What the teacher says of the utterances of a batch, one after the other, in the memory of `counts`.

        Args:
            counts: positions of each utterance
        """
        places = []
        for name, count in zip(ids, counts.tolist()):
            place = self._places[name]
            assert place.stop - place.start == count, f"{name} has {count} positions, the cache others"
            places.append(place)
        ids_PK, log_p_PK, log_rest_P = (self._tensors[name] for name in _NAMES)
        rows = torch.cat([torch.arange(place.start, place.stop) for place in places])
        return TopTokens(ids_PK[rows].long(), log_p_PK[rows], log_rest_P[rows]).to(counts.device)

    def _read(self) -> None:
        try:
            with safe_open(self.path, "pt") as file:
                about = file.metadata() or {}
                found, utterances = json.loads(about["identity"]), json.loads(about["utterances"])
                self._tensors = {name: file.get_tensor(name) for name in _NAMES}
        except (SafetensorError, KeyError, ValueError) as error:
            raise UserError(f"{self.path} is no cache of teachers, or damaged ({error}): remove it") from None
        for name, value in self._identity.items():
            if found.get(name) != value:
                raise UserError(
                    f"distillation: {self.path} was made from other {name}: remove it, or name another cache"
                )
        start = 0
        for name, count in utterances:
            self._places[name] = slice(start, start + count)
            start += count


def check_constant(augmented: bool, speed_factors: Sequence[float]) -> None:
    """Raises UserError where an utterance is not the same each time it is seen."""
    if augmented or set(speed_factors) != {1.0}:
        what = "augment" if augmented else "data.speed_factors"
        raise UserError(
            f"distillation: a cache of teachers needs utterances that are the same in each epoch: leave out {what}, or "
            "the cache"
        )

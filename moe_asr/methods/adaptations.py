"""One adaptation for all utterances, or one for each speaker, accent or language."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from moe_asr.data.manifests import Utterance, read_manifest
from moe_asr.errors import UserError
from moe_asr.files import check_folder_name, folder_bytes
from moe_asr.methods.adapt import load_adapted, load_stacked
from moe_asr.methods.adaptation import AdaptedRecogniser
from moe_asr.models.interface import Recogniser

KEYS = ("speaker", "accent", "language")
_PLACE = re.compile(r"{([^{}]*)}")


@dataclass(frozen=True)
class AdaptationFolders:
    """The folders that `exp/saml/{speaker}/final` stands for.

    Args:
        key: field of an utterance that names its adaptation; None for one folder, which serves all
        folders: of each value of that field, sorted; of "" where there is no field
    """

    key: Optional[str]
    folders: dict[str, Path]

    def load(self, recogniser: Recogniser) -> AdaptedRecogniser:
        """The recogniser with all of them; utterances with different ones may share a batch.

        Raises:
            UserError: see `load_adapted` and `load_stacked`
        """
        if self.key is None:
            return load_adapted(recogniser, self.folders[""])
        return load_stacked(recogniser, self.folders, self.key)

    @property
    def bytes_of_one(self) -> int:
        """Size of one of them on disk, the mean if there are several."""
        return round(sum(map(folder_bytes, self.folders.values())) / len(self.folders))


def find_adaptations(pattern: str, manifest: str | Path) -> AdaptationFolders:
    """The adaptation folder of each speaker (accent, language) that occurs in a manifest.

    Raises:
        UserError: see `adaptations_for`
    """
    if not _PLACE.search(pattern):
        return AdaptationFolders(None, {"": Path(pattern)})
    return adaptations_for(pattern, read_manifest(manifest), manifest, "adaptation")


def adaptations_for(pattern: str, utterances: Iterable[Utterance], source: str | Path, what: str) -> AdaptationFolders:
    """The adaptation folder of each speaker (accent, language) of some utterances.

    Args:
        source: where the utterances are from, for messages
        what: what the pattern is, for messages

    Raises:
        UserError: another placeholder, more than one, an utterance without that label or with one that is no
            folder's name, or a folder is missing
    """
    names = sorted(set(_PLACE.findall(pattern)))
    if len(names) != 1 or names[0] not in KEYS:
        known = ", ".join(f"{{{key}}}" for key in KEYS)
        raise UserError(f"{what} {pattern}: use one of the placeholders {known}")
    key = names[0]
    folders = {}
    for utterance in utterances:
        value = getattr(utterance, key)
        if not value:
            raise UserError(f"{what} {pattern}: utterance {utterance.id} has no {key}; add it to its table")
        check_folder_name(value, source)
        folders.setdefault(value, Path(pattern.replace(f"{{{key}}}", value)))
    for value, folder in sorted(folders.items()):
        if not (folder / "adaptation.yaml").is_file():
            raise UserError(f"no {what} for {key} {value} in {folder}: train it first, or leave its utterances out")
    return AdaptationFolders(key, dict(sorted(folders.items())))

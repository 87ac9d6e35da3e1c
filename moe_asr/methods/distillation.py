"""Distillation: experts that are taught by others on the same frozen base, each by those of its own language.

The second stage "distillation" of LoRA language experts (arXiv 2506.21555, our reading): one student on the data of all
languages, teacher of an utterance of language l is the base with the experts of l. With CTC beside the decoder, the CTC
part of the loss stays as it is: what is distilled is what the decoder says.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Union

import torch
from torch import Tensor

from moe_asr.data.batches import Batch
from moe_asr.data.manifests import Utterance
from moe_asr.errors import UserError
from moe_asr.experts import adapter_identity
from moe_asr.losses.distillation import Divergence, distillation_loss
from moe_asr.methods.adaptation import AdaptedRecogniser
from moe_asr.methods.adaptations import AdaptationFolders, adaptations_for
from moe_asr.models.interface import Loss, Recogniser


@dataclass(frozen=True)
class DistillationConfig:
    """Teachers, and how much they say; the loss is in `moe_asr.losses.distillation`.

    Args:
        teachers: adaptation folders on the model of the student: exp/experts/{language}/final, or a folder for each
            label, as {de: exp/de/final, fr: exp/fr/final}; all of one kind and rank, see `decode --adaptation`
        key: the label of utterances that names their teacher, for a folder for each label
        weight: lambda, the share of the teacher in the loss; the transcript has the rest
        temperature: T, that of teacher and student
        divergence: kl (Kullback-Leibler, teacher before student) or js (Jensen-Shannon)
    """

    teachers: Union[dict[str, str], str]
    key: Literal["language", "accent", "speaker"] = "language"
    weight: float = 0.5
    temperature: float = 1.0
    divergence: Divergence = "kl"

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise UserError(f"distillation: weight must be from 0 to 1, not {self.weight}")
        if not self.temperature > 0:
            raise UserError(f"distillation: temperature must be above 0, not {self.temperature}")
        if not self.teachers:
            raise UserError("distillation: name the teachers, as exp/experts/{language}/final")


class Distiller:
    """The loss of a student with its teachers; called as the student is.

    The teachers are experts on a copy of the student's model that shares its weights, in evaluation mode and without
    gradients, so all that they add to memory is their experts and the activations of their forward pass.

    Args:
        student: on its device, its base in the types that it is stored in
        config: see there
        utterances: all that will be seen

    Raises:
        UserError: a teacher is missing, belongs to another base or differs in kind from others, the model predicts no
            tokens; see `load_stacked`
    """

    def __init__(self, student: AdaptedRecogniser, config: DistillationConfig, utterances: Iterable[Utterance]) -> None:
        self.student, self.config = student, config
        if type(student.recogniser).predictions is Recogniser.predictions:
            raise UserError("distillation is for models that predict token after token; this one has CTC alone")
        folders = teacher_folders(config, utterances)
        base = student.adapter.base_copy()
        base.set_gradient_checkpointing(False)
        self.teacher = folders.load(base)

    def __call__(self, features_NTF: Tensor, feature_lengths_N: Tensor, batch: Batch) -> Loss:
        """Parts: those of `distillation_loss`, and what the student's model reports beside."""
        with torch.no_grad():
            taught = self.teacher.predictions(features_NTF, feature_lengths_N, batch)
        criterion = partial(
            distillation_loss,
            teacher_MD=taught.hidden_MD,
            weight=self.config.weight,
            temperature=self.config.temperature,
            divergence=self.config.divergence,
        )
        return self.student(features_NTF, feature_lengths_N, batch, criterion)

    @property
    def identity(self) -> dict[str, object]:
        """Who the teachers are, by their weights."""
        return {"labels": list(self.teacher.members), "experts": adapter_identity(self.teacher.adapter)}


def teacher_folders(config: DistillationConfig, utterances: Iterable[Utterance]) -> AdaptationFolders:
    """The teachers of all labels that occur.

    Raises:
        UserError: an utterance has no label, or a label no teacher; see `adaptations_for`
    """
    if isinstance(config.teachers, str):
        return adaptations_for(config.teachers, utterances, "the data", "teacher")
    folders = {}
    for utterance in utterances:
        label = getattr(utterance, config.key)
        if label not in config.teachers:
            known = ", ".join(config.teachers)
            raise UserError(
                f"distillation: utterance {utterance.id} has {config.key} '{label}', but teachers are given for {known}"
            )
        folders[label] = Path(config.teachers[label])
    return AdaptationFolders(config.key, dict(sorted(folders.items())))

"""Distillation: experts that are taught by others on the same frozen base, each by those of its own language.

The second stage "distillation" of LoRA language experts (arXiv 2506.21555, our reading): one student on the data of all
languages, teacher of an utterance of language l is the base with the experts of l. With CTC beside the decoder, the CTC
part of the loss stays as it is: what is distilled is what the decoder says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Optional, Union

import torch
from torch import Tensor

from moe_asr.data.batches import Batch
from moe_asr.data.manifests import Utterance
from moe_asr.errors import UserError
from moe_asr.experts import adapter_identity
from moe_asr.losses.distillation import Divergence, distillation_loss
from moe_asr.losses.top_tokens import TopTokens, top_tokens
from moe_asr.methods.adaptation import AdaptedRecogniser
from moe_asr.methods.adaptations import AdaptationFolders, adaptations_for
from moe_asr.methods.teacher_cache import TeacherCache
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
        top_k: tokens of each position that the teacher tells apart, the others are one; 0 for all of them
        cache: file of what the teachers say of each utterance, written before the first step (with top_k); then they
            are not asked again, and utterances must be the same in each epoch
    """

    teachers: Union[dict[str, str], str]
    key: Literal["language", "accent", "speaker"] = "language"
    weight: float = 0.5
    temperature: float = 1.0
    divergence: Divergence = "kl"
    top_k: int = 0
    cache: Optional[str] = None

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise UserError(f"distillation: weight must be from 0 to 1, not {self.weight}")
        if not self.temperature > 0:
            raise UserError(f"distillation: temperature must be above 0, not {self.temperature}")
        if self.top_k < 0:
            raise UserError(f"distillation: top_k must not be negative, but is {self.top_k}")
        if self.cache and not self.top_k:
            raise UserError("distillation: a cache is for the best tokens of each position; set top_k, to 10 perhaps")
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
        self.teacher: Optional[AdaptedRecogniser] = folders.load(base)
        self._cache: Optional[TeacherCache] = None
        self._identity = {"labels": list(self.teacher.members), "experts": adapter_identity(self.teacher.adapter)}

    def __call__(self, features_NTF: Tensor, feature_lengths_N: Tensor, batch: Batch) -> Loss:
        """Parts: those of `distillation_loss`, and what the student's model reports beside."""
        if self._cache is not None:
            taught = self._cache(batch.ids, batch.token_lengths_N + 1)
        else:
            taught = self._ask(features_NTF, feature_lengths_N, batch)
        criterion = partial(
            distillation_loss,
            teacher=taught,
            weight=self.config.weight,
            temperature=self.config.temperature,
            divergence=self.config.divergence,
        )
        return self.student(features_NTF, feature_lengths_N, batch, criterion)

    @torch.no_grad()
    def _ask(self, features_NTF: Tensor, feature_lengths_N: Tensor, batch: Batch) -> Union[Tensor, TopTokens]:
        said = self.teacher.predictions(features_NTF, feature_lengths_N, batch)
        if not self.config.top_k:
            return said.hidden_MD
        return top_tokens(said.hidden_MD, said.weight_VD, self.config.top_k, self.config.temperature)

    def use_cache(
        self, batches: Iterable[Batch], features: Callable[[Batch], tuple[Tensor, Tensor]], made_from: dict
    ) -> None:
        """From now on what the teachers say is read from the file `cache`, which is made from these batches if missing.

        The teachers are let go then.

        Args:
            features: of a batch, and their lengths
            made_from: what they depend on beside the teachers, for `TeacherCache`

        Raises:
            UserError: the file was made from something else
        """
        kept = {"top_k": self.config.top_k, "temperature": self.config.temperature, "teachers": self.identity}
        cache = TeacherCache(self.config.cache, {**kept, **made_from})
        if not cache.filled:
            cache.fill(
                (batch.ids, (batch.token_lengths_N + 1).tolist(), self._ask(*features(batch), batch))
                for batch in batches
            )
        self._cache, self.teacher = cache, None

    @property
    def identity(self) -> dict[str, object]:
        """Who the teachers are, by their weights."""
        return self._identity


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

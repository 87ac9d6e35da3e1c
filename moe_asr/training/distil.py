"""The teachers of a training run."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from moe_asr.config import to_plain
from moe_asr.data.batches import Batch, BatchLoader
from moe_asr.data.features import log_mel
from moe_asr.errors import UserError
from moe_asr.experts import base_identity
from moe_asr.methods.adaptation import AdaptedRecogniser
from moe_asr.methods.distillation import Distiller
from moe_asr.methods.teacher_cache import check_constant
from moe_asr.models.folder import FolderConfig
from moe_asr.models.precision import computing_in

if TYPE_CHECKING:
    from moe_asr.training.run import RunConfig


def make_distiller(
    config: RunConfig, model: AdaptedRecogniser, folder: FolderConfig, train: BatchLoader, valid: BatchLoader
) -> Distiller:
    """The teachers for all utterances of these loaders, or what they say of them, from a file.

    Args:
        model: the student, on its device
        folder: of its model

    Raises:
        UserError: see `Distiller`; with a cache, utterances are not the same in each epoch, or it is of other ones
    """
    utterances = [*train.utterances, *valid.utterances]
    if not config.distillation.cache:
        return Distiller(model, config.distillation, utterances)
    check_constant(config.augment is not None, [*train.config.speed_factors, *valid.config.speed_factors])
    own = {}
    for utterance in utterances:
        if own.setdefault(utterance.id, utterance) != utterance:
            raise UserError(f"distillation: {utterance.id} is one utterance in data and another in valid")
    distiller = Distiller(model, config.distillation, utterances)
    device = next(model.parameters()).device
    loaders = [
        BatchLoader(replace(loader.config, shuffle=False), train.tokens, train.domains, sample_rate=train.sample_rate)
        for loader in (train, valid)
    ]

    def features(batch: Batch) -> tuple[Tensor, Tensor]:
        return log_mel(batch.audio_NS, batch.audio_lengths_N, folder.features)

    made_from = {
        "base": base_identity(model.recogniser),
        "model": to_plain(folder.model),
        "features": to_plain(folder.features),
        "token_set": train.tokens.digest,
        "precision": config.train.precision,
        "utterances": hashlib.sha256(repr([own[name] for name in sorted(own)]).encode()).hexdigest(),
    }
    with computing_in(config.train.precision, device):
        distiller.use_cache((batch.to(device) for loader in loaders for batch in loader), features, made_from)
    return distiller

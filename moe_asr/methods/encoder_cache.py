"""States of a frozen encoder, kept in a folder, so that each utterance needs to be encoded once only.

Shape letters: N utterances, T feature frames, F width of the features, L encoder frames, D encoder width.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from moe_asr.errors import UserError
from moe_asr.experts.identity import base_identity
from moe_asr.experts.layer import ExpertLinear
from moe_asr.files import atomic_write
from moe_asr.methods.adaptation import AdaptedRecogniser

_STATES = "states_LD"


def use_encoder_cache(model: nn.Module, folder: str | Path) -> None:
    """Has a model, with experts or without, take the states of its encoder from a folder; the domain classifier too
    that goes with the experts.

    Raises:
        UserError: see `EncoderCache`
    """
    adapted = isinstance(model, AdaptedRecogniser)
    for one in (model.recogniser, model.classifier) if adapted else (model,):
        if one is not None:
            one.encoder_cache = EncoderCache(one.encoder, folder)


class EncoderCache:
    """Called in the place of an encoder.

    States are found by the encoder's weights, the number format and the features themselves, whatever made these, so
    all runs on the same encoder may share a folder. Each utterance is encoded alone, and without dropout: what is kept
    does not depend on what it was in a batch with, nor on who was the first to ask. A file for each utterance and
    speed: 0.4 MB for 5 s of Whisper tiny. A damaged one is written anew.

    Args:
        encoder: takes (features_NTF, lengths_N) and gives (states_NLD, lengths_N)
        folder: made where it is missing; it may be removed at any time between runs

    Raises:
        UserError: the encoder is trained, has experts on it, or a router that looks at all of its states
    """

    def __init__(self, encoder: nn.Module, folder: str | Path) -> None:
        if any(isinstance(module, ExpertLinear) for module in encoder.modules()):
            raise UserError("encoder_cache: there are experts on the encoder, which change its states: leave it out")
        if any(parameter.requires_grad for parameter in encoder.parameters()):
            raise UserError("encoder_cache is for an encoder that stays as it is: leave it out, or freeze the encoder")
        if encoder._forward_hooks:
            raise UserError("encoder_cache: a router looks at the encoder while it computes: leave it out")
        self._encoder, self._folder = encoder, Path(folder) / base_identity(encoder)[:16]

    def __call__(self, features_NTF: Tensor, lengths_N: Tensor) -> tuple[Tensor, Tensor]:
        """Encoder states, zero in padding frames, and how many of them are real."""
        states = [self._states(x_TF[:length]) for x_TF, length in zip(features_NTF, lengths_N.tolist())]
        lengths = torch.tensor([len(states_LD) for states_LD in states], device=lengths_N.device)
        return pad_sequence(states, batch_first=True), lengths

    @torch.no_grad()
    def _states(self, features_TF: Tensor) -> Tensor:
        device = features_TF.device.type
        form = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else features_TF.dtype
        digest = hashlib.sha256(features_TF.contiguous().cpu().view(torch.uint8).numpy()).hexdigest()
        path = self._folder / str(form).removeprefix("torch.") / digest[:2] / f"{digest}.safetensors"
        try:
            return load_file(path)[_STATES].to(features_TF.device)
        except (FileNotFoundError, SafetensorError, KeyError):
            length_1 = torch.tensor([len(features_TF)], device=features_TF.device)
            training = self._encoder.training
            self._encoder.eval()
            states_LD = self._encoder(features_TF[None], length_1)[0][0].contiguous()
            self._encoder.train(training)
        with atomic_write(path, "wb") as file:
            file.write(save({_STATES: states_LD.cpu()}))
        return states_LD

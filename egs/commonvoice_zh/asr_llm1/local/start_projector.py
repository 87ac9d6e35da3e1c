"""Starts a projector: it learns to say in the language model's embeddings of units what the encoder's CTC output hears.

From nothing the projector would have to find out through a frozen language model what that can read, which takes much
speech and many updates. Here every frame has a target: the unit that CTC writes there, or wrote last. Where it writes
several during one frame, they follow one by one; before the first unit there is the blank. This is ours, and no part of
HDMoLE; all systems of the comparison begin with it.

    loss = mean over real frames of |projector(states)_l - embedding(unit_l)|^2 / mean |embedding|^2

Shape letters: N utterances, T encoder frames, L frames after the projector, W width of the language model, V units.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from moe_asr.config import run_command
from moe_asr.data.batches import BatchLoader, DataConfig
from moe_asr.data.features import log_mel
from moe_asr.data.unit_tokens import BLANK
from moe_asr.errors import UserError
from moe_asr.models.folder import LoadedModel, load_model, open_frozen, save_model
from moe_asr.models.time_conv import real_mask


@dataclass(frozen=True)
class StartConfig:
    """Writes a model folder with a projector that can be trained on.

    Args:
        units: Model folder that the encoder was taken from, with its CTC output.
        init: Untrained speech LLM on that encoder and a language model that reads these units.
        manifest: Speech to learn from; its texts play no part.
        out_dir: Model folder to write.
        epochs: Passes over the speech.
        max_duration: Of a batch, in seconds.
        lr: Highest learning rate; it falls to 0 along a line.
        seed: Of the order of the batches.
    """

    units: str
    init: str
    manifest: str
    out_dir: str
    epochs: int = 5
    max_duration: float = 30.0
    lr: float = 2e-3
    seed: int = 0


def heard(best_NT: Tensor, lengths_N: Tensor, blank: int, stride: int, num_frames: int) -> Tensor:
    """The unit of each frame after the projector, (N, L); `blank` before the first one.

    Args:
        best_NT: most probable unit of each encoder frame, of which `lengths` are real
        stride: encoder frames in a frame after the projector
    """
    units_NL = torch.full((len(best_NT), num_frames), blank)
    for units_L, best, length in zip(units_NL, best_NT.tolist(), lengths_N.tolist()):
        waiting, now, before = [], blank, blank
        for frame in range(num_frames):
            for unit in best[frame * stride : min(length, (frame + 1) * stride)]:
                if unit != before and unit != blank:
                    waiting.append(unit)
                before = unit
            now = waiting.pop(0) if waiting else now
            units_L[frame] = now
    return units_NL


def embeddings_of(loaded: LoadedModel, ctc: LoadedModel) -> Tensor:
    """The language model's embeddings of the CTC output's units, (V, W).

    Raises:
        UserError: it has no token for one of them
    """
    pieces = [ctc.tokens.piece(unit).lstrip("\u2581") for unit in range(ctc.tokens.size)]
    names = [BLANK if piece.startswith("<") else f"[{piece}]" for piece in pieces]
    tokens = [loaded.tokens.find(name) for name in names]
    if None in tokens:
        raise UserError(f"the language model has no token {names[tokens.index(None)]}: train it on these units")
    return loaded.model.embed(torch.tensor(tokens)).detach().float()


def start(config: StartConfig) -> None:
    loaded, ctc = load_model(config.init), load_model(config.units)
    model, blank, stride = loaded.model, ctc.model.blank, loaded.model.projector.conv2.stride[0]
    embedding_VW = embeddings_of(loaded, ctc)
    scale = embedding_VW.square().mean()
    torch.manual_seed(config.seed)
    loader = BatchLoader(DataConfig([config.manifest], max_duration=config.max_duration, seed=config.seed), None)
    total = config.epochs * len(loader)
    optimizer = torch.optim.AdamW(model.projector.parameters(), config.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 50, 1 - step / total))
    for epoch in range(config.epochs):
        loader.seek(epoch)
        losses, right, frames = 0.0, 0, 0
        for batch in loader:
            with torch.autocast("cpu", torch.bfloat16):
                features_NTF, lengths_N = log_mel(batch.audio_NS, batch.audio_lengths_N, loaded.config.features)
                with torch.no_grad():
                    best_NT = ctc.model.log_probs(features_NTF, lengths_N)[0].argmax(2)
                    states_NTD, lengths_N = model.encode(features_NTF, lengths_N)
                speech_NLW, frames_N = model.projector(states_NTD, lengths_N)
            units_NL = heard(best_NT, lengths_N, blank, stride, speech_NLW.shape[1])
            real_NL = real_mask(frames_N, speech_NLW.shape[1])
            speech_MW, units_M = speech_NLW.float()[real_NL], units_NL[real_NL]
            loss = nn.functional.mse_loss(speech_MW, embedding_VW[units_M]) / scale
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            nearest_M = torch.cdist(speech_MW.detach(), embedding_VW).argmin(1)
            losses, frames = losses + loss.item() * len(units_M), frames + len(units_M)
            right += int((nearest_M == units_M).sum())
        nearest = f"nearest unit right in {right / frames:.1%} of the frames"
        print(f"epoch {epoch + 1}: error {losses / frames:.3f}, {nearest}")
    with open_frozen(config.init) as frozen:
        save_model(config.out_dir, model.eval(), replace(loaded.config, untrained=True), loaded.tokens, frozen)


if __name__ == "__main__":
    run_command(StartConfig, start)

"""Starts a projector: it learns to say in the language model's embeddings of syllables what the encoder's CTC hears.

From nothing the projector would have to find out through a frozen language model what that can read, which takes much
speech and many updates. Here every frame has a target: the syllable that CTC finishes there, or the blank. Where it
finishes several during one frame, they follow one by one. This is ours, and no part of HDMoLE; all systems of the
comparison begin with it. The speech may be of all accents: nobody needs to write down what was said.

    loss = mean over real frames of |projector(states)_l - embedding(syllable_l)|^2 / mean |embedding|^2

Shape letters: N utterances, T encoder frames, L frames after the projector, W width of the language model, K what the
language model reads: the blank and syllables.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from pinyin import INITIALS
from torch import Tensor, nn

from moe_asr.config import run_command
from moe_asr.data.batches import Batch, BatchLoader, DataConfig
from moe_asr.data.features import log_mel
from moe_asr.data.unit_tokens import BLANK, is_unit
from moe_asr.methods.encoder_cache import use_encoder_cache
from moe_asr.models.folder import LoadedModel, load_model, open_frozen, save_model
from moe_asr.models.time_conv import real_mask


@dataclass(frozen=True)
class StartConfig:
    """Writes a model folder with a projector that can be trained on.

    Args:
        units: Model folder that the encoder was taken from, with its CTC output.
        init: Untrained speech LLM on that encoder and a language model that reads these units.
        manifests: Speech to learn from; its texts play no part.
        valid: Speech to see how well it does, after each epoch.
        out_dir: Model folder to write.
        encoder_cache: Folder for the states of the encoder, see bin/train.
        epochs: Passes over the speech, at three speeds in turn.
        max_duration: Of a batch, in seconds.
        lr: Highest learning rate; it falls to 0 along a line.
        seed: Of the order of the batches.
    """

    units: str
    init: str
    manifests: list[str]
    valid: str
    out_dir: str
    encoder_cache: str
    epochs: int = 12
    max_duration: float = 30.0
    lr: float = 2e-3
    seed: int = 0


class Ear:
    """Puts the units that CTC writes (initials, finals, tones) together to syllables.

    Args:
        units: All units, "" for those that are no sound.
        syllables: Those that can be said, such as "da4".
    """

    def __init__(self, units: Sequence[str], syllables: Sequence[str]):
        self.units, self.number = units, {syllable: i for i, syllable in enumerate(syllables, 1)}

    def __call__(self, best_NT: Tensor, lengths_N: Tensor, stride: int, num_frames: int) -> Tensor:
        """The syllable of each frame after the projector, counted from 1, or 0 for the blank: (N, L).

        Args:
            best_NT: Most probable unit of each encoder frame, of which `lengths` are real.
            stride: Encoder frames in a frame after the projector.
        """
        said_NL = torch.zeros(len(best_NT), num_frames, dtype=torch.int64)
        for said_L, best, length in zip(said_NL, best_NT.tolist(), lengths_N.tolist()):
            free = 0  # the first frame that nothing was put in
            for frame, syllable in self._syllables(best[:length]):
                free = max(free, frame // stride)
                if free < num_frames:
                    said_L[free] = syllable
                free += 1
        return said_NL

    def _syllables(self, best: list[int]) -> list[tuple[int, int]]:
        """Each with the frame where it ends; one that cannot be said gets another tone, or is left out."""
        found, initial, final, end, before = [], "", "", 0, None

        def finish(tone: str) -> None:
            if final:
                tried = [initial + final + number for number in tone + "41235"]  # the most frequent one first
                found.extend([(end, self.number[one]) for one in tried if one in self.number][:1])

        for frame, number in enumerate([*best, None]):
            unit = "" if number is None or number == before else self.units[number]
            before = number
            if unit.isdigit():
                end = frame
                finish(unit)
                initial = final = ""
            elif unit in INITIALS or number is None or (unit and final):
                finish("")  # its tone was not heard
                initial, final, end = (unit, "", frame) if unit in INITIALS else ("", unit, frame)
            elif unit:
                final, end = unit, frame
        return found


def readable(loaded: LoadedModel) -> tuple[list[str], Tensor]:
    """Syllables that the language model reads, and its embeddings of the blank and of them, (K, W)."""
    tokens = loaded.tokens
    names = [piece for piece in map(tokens.piece, range(tokens.size)) if is_unit(piece) and piece != BLANK]
    ids = torch.tensor([tokens.find(name) for name in [BLANK, *names]])
    return [name[1:-1] for name in names], loaded.model.embed(ids).detach().float()


class Criterion:
    """The loss of a projector, and how well it does.

    Args:
        loaded: untrained speech LLM
        ctc: model that the encoder was taken from
    """

    def __init__(self, loaded: LoadedModel, ctc: LoadedModel):
        self.model, self.ctc, self.features = loaded.model, ctc.model, loaded.config.features
        syllables, self.embedding_KW = readable(loaded)
        pieces = [ctc.tokens.piece(unit).lstrip("\u2581") for unit in range(ctc.tokens.size)]
        self.ear = Ear(["" if piece.startswith("<") else piece for piece in pieces], syllables)
        self.scale = self.embedding_KW.square().mean()

    def __call__(self, batch: Batch) -> tuple[Tensor, Counter]:
        """The loss of a batch, and sums: its frames, the syllables heard, and those of them in their place."""
        features_NTF, lengths_N = log_mel(batch.audio_NS, batch.audio_lengths_N, self.features)
        with torch.no_grad():
            best_NT = self.ctc.log_probs(features_NTF, lengths_N)[0].argmax(2)
            states_NTD, lengths_N = self.model.encode(features_NTF, lengths_N)
        speech_NLW, frames_N = self.model.projector(states_NTD, lengths_N)
        stride, num_frames = self.model.projector.conv2.stride[0], speech_NLW.shape[1]
        said_NL = self.ear(best_NT, lengths_N, stride, num_frames)
        real_NL = real_mask(frames_N, num_frames)
        speech_MW, said_M = speech_NLW[real_NL], said_NL[real_NL]
        loss = nn.functional.mse_loss(speech_MW, self.embedding_KW[said_M]) / self.scale
        right_M = torch.cdist(speech_MW.detach(), self.embedding_KW).argmin(1) == said_M
        heard_M = said_M > 0
        return loss, Counter(frames=len(said_M), heard=int(heard_M.sum()), right=int((right_M & heard_M).sum()))


def start(config: StartConfig) -> None:
    loaded, ctc = load_model(config.init), load_model(config.units)
    for one in (loaded.model, ctc.model.requires_grad_(False)):
        use_encoder_cache(one, config.encoder_cache)
    projector, criterion = loaded.model.projector, Criterion(loaded, ctc)
    torch.manual_seed(config.seed)
    size = {"max_duration": config.max_duration, "seed": config.seed}
    loader = BatchLoader(DataConfig(config.manifests, speed_factors=[0.9, 1.0, 1.1], **size), None)
    valid = BatchLoader(DataConfig([config.valid], shuffle=False, **size), None)
    total = config.epochs * len(loader)
    optimizer = torch.optim.AdamW(projector.parameters(), config.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 50, 1 - step / total))
    for epoch in range(config.epochs):
        loader.seek(epoch)
        sums, losses = Counter(), 0.0
        for batch in loader:
            loss, counts = criterion(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses, sums = losses + loss.item() * counts["frames"], sums + counts
        with torch.no_grad():
            found = sum((criterion(batch)[1] for batch in valid), Counter())
        right, elsewhere = (f"{each['right'] / max(1, each['heard']):.1%}" for each in (sums, found))
        text = f"error {losses / sums['frames']:.3f}, {right} of the syllables heard in their place"
        print(f"epoch {epoch + 1}: {text}; of the other speech {elsewhere}", flush=True)
    with open_frozen(config.init) as frozen:
        folder = replace(loaded.config, untrained=True)
        save_model(config.out_dir, loaded.model.eval(), folder, loaded.tokens, frozen)


if __name__ == "__main__":
    run_command(StartConfig, start)

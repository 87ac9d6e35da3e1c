"""Batches for training and decoding: audio, tokens and domains of several utterances.

Shape suffixes: N utterances, S samples, U tokens.
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from moe_asr.data.audio import load_audio
from moe_asr.data.manifests import Utterance, read_manifests
from moe_asr.data.plan import BatchPlan, Share
from moe_asr.data.splits import group_by
from moe_asr.data.tokens import Tokens
from moe_asr.data.workers import load_in_order
from moe_asr.errors import UserError


@dataclass(frozen=True)
class DataConfig:
    """Where the utterances come from, and how they are put into batches.

    Args:
        manifests: Files made by `bin/prepare`; their utterances are taken together.
        speaker: Only this speaker's utterances; empty takes all.
        accent: Only utterances of this accent; empty takes all.
        language: Only utterances of this language; empty takes all.
        max_duration: Limit of a batch in seconds of audio, padding included.
        max_utterances: Limit of a batch in utterances; 0 for none.
        num_buckets: Utterances of like duration meet in a batch; more buckets mean less padding and less variety.
        shuffle: Random order, new in each epoch; otherwise by falling duration.
        seed: Of the order and the speeds.
        speed_factors: Speed perturbation; each utterance gets one of these in each epoch.
        domain_key: The field whose values are the domains.
        max_per_domain: At most so many utterances of each domain, chosen by the seed; 0 takes all.
        unknown_domain: What to do with an utterance whose label is not among the domains: `error`, or `allow`, which
            gives it the index -1.
        num_workers: Processes that load audio; results do not depend on it.
    """

    manifests: list[str] = field(default_factory=list)
    speaker: str = ""
    accent: str = ""
    language: str = ""
    max_duration: float = 60.0
    max_utterances: int = 0
    num_buckets: int = 50
    shuffle: bool = True
    seed: int = 0
    speed_factors: tuple[float, ...] = (1.0,)
    domain_key: Literal["accent", "speaker", "language"] = "accent"
    max_per_domain: int = 0
    unknown_domain: Literal["error", "allow"] = "error"
    num_workers: int = 0


@dataclass(frozen=True)
class Trouble:
    """Something that went wrong while a batch was loaded, and that the run survived.

    Args:
        reason: what, in one line
        left_out: ids of the utterances that are missing from the batch for it
    """

    reason: str
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Batch:
    """Some utterances, padded with zeros to the longest.

    Args:
        audio_NS: Samples in [-1, 1], float32.
        audio_lengths_N: Samples of each utterance.
        tokens_NU: Token ids of the texts, padded with 0.
        token_lengths_N: Tokens of each text.
        domains_N: Index of each utterance's domain, -1 where it is unknown.
        troubles: What went wrong while it was loaded.
    """

    ids: list[str]
    texts: list[str]
    speakers: list[str]
    accents: list[str]
    languages: list[str]
    audio_NS: Tensor
    audio_lengths_N: Tensor
    tokens_NU: Tensor
    token_lengths_N: Tensor
    domains_N: Tensor
    troubles: tuple[Trouble, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> Batch:
        """The same with its tensors on `device`."""
        tensors = {k: v.to(device, non_blocking=True) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return dataclasses.replace(self, **tensors)

    def part(self, chosen: slice) -> Batch:
        """Some of the utterances, with no more padding than they need."""
        tensors = {k: v[chosen] for k, v in vars(self).items() if isinstance(v, Tensor)}
        for padded, lengths in (("audio_NS", "audio_lengths_N"), ("tokens_NU", "token_lengths_N")):
            tensors[padded] = tensors[padded][:, : int(tensors[lengths].max())]
        lists = {k: v[chosen] for k, v in vars(self).items() if isinstance(v, list)}
        return dataclasses.replace(self, **tensors, **lists, troubles=())

    def pin_memory(self) -> Batch:
        """The same with its tensors in pinned memory; torch's DataLoader calls this."""
        tensors = {k: v.pin_memory() for k, v in vars(self).items() if isinstance(v, Tensor)}
        return dataclasses.replace(self, **tensors)


def make_batch(
    utterances: Sequence[Utterance],
    tokens: Tokens | None,
    domains: Sequence[str] = (),
    domain_key: str = "accent",
    sample_rate: int = 16000,
    speeds: Sequence[float] | None = None,
    unreadable: Literal["error", "leave_out"] = "error",
) -> Batch:
    """Loads the audio of some utterances, and encodes their texts.

    Raises:
        UserError: some audio cannot be read, and is not to be left out.
    """
    found, audio, troubles = [], [], []
    for utterance, speed in zip(utterances, speeds if speeds is not None else [1.0] * len(utterances)):
        try:
            audio.append(load_audio(utterance, sample_rate, speed))
            found.append(utterance)
        except UserError as error:
            if unreadable == "error":
                raise
            troubles.append(Trouble(str(error), (utterance.id,)))
    batch = collate(found, audio, tokens, domains, domain_key)
    return dataclasses.replace(batch, troubles=tuple(troubles)) if troubles else batch


def collate(
    utterances: Sequence[Utterance],
    audio: Sequence[np.ndarray],
    tokens: Tokens | None,
    domains: Sequence[str] = (),
    domain_key: str = "accent",
) -> Batch:
    """A batch of utterances whose samples are there already, float32 of shape [S] each."""
    ids = [torch.tensor(tokens.encode(u.text) if tokens else [], dtype=torch.int64) for u in utterances]
    number = {name: i for i, name in enumerate(domains)}
    return Batch(
        ids=[u.id for u in utterances],
        texts=[u.text for u in utterances],
        speakers=[u.speaker for u in utterances],
        accents=[u.accent for u in utterances],
        languages=[u.language for u in utterances],
        audio_NS=_padded([torch.from_numpy(samples) for samples in audio]),
        audio_lengths_N=torch.tensor([len(a) for a in audio], dtype=torch.int64),
        tokens_NU=_padded(ids),
        token_lengths_N=torch.tensor([len(i) for i in ids], dtype=torch.int64),
        domains_N=torch.tensor([number.get(getattr(u, domain_key), -1) for u in utterances], dtype=torch.int64),
    )


def _padded(sequences: list[Tensor]) -> Tensor:
    return pad_sequence(sequences, batch_first=True) if sequences else torch.zeros(0, 0)


class BatchLoader:
    """Iterates over the batches of one epoch, from any position; the same for any number of workers.

        loader = BatchLoader(config, tokens, domains, epoch, start_batch)
        for batch in loader: ...
        loader.seek(epoch + 1)

    Args:
        config: What to load.
        tokens: Encodes the texts; None leaves the batches without tokens.
        domains: Sorted names of the domains, as `domain_names` gives them; empty if domains play no part.
        epoch: Counts from 0.
        start_batch: Index of the first batch, so that training goes on after it has consumed that many.
        sample_rate: In Hz; that of the features.
        unreadable: What to do about an utterance whose audio cannot be read: `error`, or `leave_out`, which tells of it
            in the batch's troubles; a batch may then be empty.
        share: Which batches to load, where several processes have parts of them; None is given for the others.

    Raises:
        UserError: a manifest is missing or empty, ids occur twice, or a domain, the speaker, the accent or the language
            is unknown.
    """

    def __init__(
        self,
        config: DataConfig,
        tokens: Tokens | None,
        domains: Sequence[str] = (),
        epoch: int = 0,
        start_batch: int = 0,
        sample_rate: int = 16000,
        unreadable: Literal["error", "leave_out"] = "error",
        share: Share = Share(),
    ):
        self.config, self.tokens, self.domains = config, tokens, list(domains)
        self.sample_rate, self.unreadable, self.share = sample_rate, unreadable, share
        self.utterances = _chosen(config)
        _check_domains(self.utterances, config, self.domains)
        self.plan = BatchPlan(
            [u.seconds for u in self.utterances],
            config.max_duration,
            config.num_buckets,
            config.seed,
            config.shuffle,
            config.speed_factors,
            config.max_utterances,
        )
        self.seek(epoch, start_batch)

    def seek(self, epoch: int, start_batch: int = 0) -> None:
        """Moves to a position: the next iteration begins there."""
        self.epoch, self.start_batch = epoch, start_batch
        self._batches, self._speeds = self.plan.epoch(epoch), self.plan.speeds(epoch)

    def __len__(self) -> int:
        """Batches from the position to the end of the epoch."""
        return max(0, len(self._batches) - self.start_batch)

    def __iter__(self) -> Iterator[Batch | None]:
        numbers = range(self.start_batch, len(self._batches))
        own = [self._batches[number] for number in numbers if self.share.has(number)]
        troubles: list[Trouble] = []
        died = lambda reason: troubles.append(Trouble(reason))  # noqa: E731
        items = _Batches(self, own, self._speeds)
        with closing(load_in_order(items, self.config.num_workers, died)) as batches:
            for number in numbers:
                if not self.share.has(number):
                    yield None
                    continue
                batch = next(batches)
                if isinstance(batch, UserError):
                    raise batch
                yield dataclasses.replace(batch, troubles=(*batch.troubles, *troubles)) if troubles else batch
                troubles.clear()


def _chosen(config: DataConfig) -> list[Utterance]:
    utterances = read_manifests(config.manifests)
    for key in ("speaker", "accent", "language"):
        if name := getattr(config, key):
            [utterances] = group_by(utterances, [name], ", ".join(config.manifests), key)
    if not config.max_per_domain:
        return utterances
    order = list(utterances)
    random.Random(config.seed).shuffle(order)
    count: Counter[str] = Counter()
    kept = set()
    for utterance in order:
        domain = getattr(utterance, config.domain_key)
        count[domain] += 1
        if count[domain] <= config.max_per_domain:
            kept.add(utterance.id)
    return [utterance for utterance in utterances if utterance.id in kept]


class _Batches(Dataset):
    """The batches of one epoch, numbered."""

    def __init__(self, loader: BatchLoader, batches: list[list[int]], speeds: Sequence[float]):
        self._config, self._tokens, self._domains = loader.config, loader.tokens, loader.domains
        self._utterances, self._batches, self._speeds = loader.utterances, batches, speeds
        self._sample_rate, self._unreadable = loader.sample_rate, loader.unreadable

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> Batch | UserError:
        chosen = self._batches[index]
        try:
            return make_batch(
                [self._utterances[i] for i in chosen],
                self._tokens,
                self._domains,
                self._config.domain_key,
                self._sample_rate,
                [float(self._speeds[i]) for i in chosen],
                self._unreadable,
            )
        except UserError as error:  # returned, for torch would raise it again with the worker's traceback as its text
            return error


def _check_domains(utterances: Sequence[Utterance], config: DataConfig, domains: list[str]) -> None:
    if not domains or config.unknown_domain == "allow":
        return
    unknown = sorted({getattr(u, config.domain_key) for u in utterances} - set(domains))
    if unknown:
        raise UserError(
            f"{config.domain_key} {', '.join(map(repr, unknown[:5]))} is not among the domains {', '.join(domains)}:"
            " set data.unknown_domain to allow, or leave these utterances out"
        )

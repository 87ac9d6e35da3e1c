"""Batches of text for training a language model: a source of units and the target to write for it.

Sequences are [before][source][after][target][end]; before and after are the two halves of the prompt.

Shape suffixes: N sequences of a batch, M positions, L places to look at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from moe_asr.data.lines import read_lines
from moe_asr.data.plan import BatchPlan, Share
from moe_asr.data.unit_noise import NoiseConfig, UnitNoise
from moe_asr.data.unit_tokens import BLANK, END, encode_prompt, encode_texts, is_unit
from moe_asr.errors import UserError
from moe_asr.strict_json import parse_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

IGNORED = -1  # in place of a token that is not to be predicted
_ORDER, _NOISE = 0, 1  # independent random streams of one epoch


@dataclass(frozen=True)
class TextDataConfig:
    """Where pairs of source and target come from, and how they are put into batches.

    Args:
        files: JSON lines {"source": "[d] [a] [4]", "target": "..."}, maybe gzipped; they are taken together.
        max_tokens: Limit of a batch in tokens, padding included.
        num_buckets: Sequences of like length meet in a batch; more buckets mean less padding and less variety.
        shuffle: Random order, new in each epoch; otherwise by falling length and with the same noise each time.
        seed: Of order and noise.
        join: Short pairs are joined at random, anew in each epoch, to sequences of up to 1 ... so many tokens of source
            and target, the logarithm of that limit equally distributed; longer pairs stay alone, and 0 joins none.
        noise: What is done to the sources.
        loss_on: Whether the target (with the end) or all of the sequence is to be predicted.
    """

    files: list[str] = field(default_factory=list)
    max_tokens: int = 4096
    num_buckets: int = 50
    shuffle: bool = True
    seed: int = 0
    join: int = 0
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    loss_on: Literal["target", "all"] = "target"


@dataclass(frozen=True)
class Pair:
    """One line of a file: the units of the source, the target, and where it stands."""

    source: tuple[str, ...]
    target: str
    place: str


def read_pairs(files: Sequence[str]) -> list[Pair]:
    """Reads JSON lines.

    Raises:
        UserError: no file, an empty one, or a line that is no pair of units and text.
    """
    if not files:
        raise UserError("no text files: give the data's files, JSON lines with source and target")
    pairs: list[Pair] = []
    for path in files:
        before = len(pairs)
        for number, line in enumerate(read_lines(path), 1):
            if line.strip():
                pairs.append(_pair(line, f"{path}:{number}"))
        if len(pairs) == before:
            raise UserError(f'{path} is empty: it must hold lines of {{"source": "[d] [a]", "target": "..."}}')
    return pairs


def _pair(line: str, place: str) -> Pair:
    try:
        values = parse_json(line)
        source, target = values["source"].split(), values["target"]
    except (ValueError, TypeError, KeyError, AttributeError):
        source, target = [], None
    if not isinstance(target, str) or not target or not source:
        raise UserError(f'{place} is no line like {{"source": "[d] [a]", "target": "..."}}')
    wrong = next((unit for unit in source if not is_unit(unit) or unit == BLANK), None)
    if wrong is not None:
        raise UserError(f"{place}: '{wrong}' in the source is no unit; units are written [like] [this], [-] is noise")
    return Pair(tuple(source), target, place)


@dataclass(frozen=True)
class TextBatch:
    """Sequences padded to the longest.

    Args:
        ids: Where each sequence, or the first pair in it, stands.
        tokens_NM: Inputs, the sequences without their end; 0 in padding.
        next_NM: What is to be predicted at each position; IGNORED where nothing is.
        look_NLM: Positions to look at, IGNORED where that does not matter; L is 3. The first is that of the unit
            before, where a unit begins, and of the character before where there is one; the second that of the unit
            before that one; the third that of the unit that stands for what is to be predicted, in pairs with a unit
            for each character.
    """

    ids: list[str]
    tokens_NM: Tensor
    next_NM: Tensor
    look_NLM: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, chosen: slice) -> TextBatch:
        """Some of the sequences."""
        return TextBatch(self.ids[chosen], *(tensor[chosen] for tensor in self._tensors))

    def to(self, device: torch.device | str) -> TextBatch:
        """The same with its tensors on `device`."""
        return TextBatch(self.ids, *(tensor.to(device) for tensor in self._tensors))

    @property
    def _tensors(self) -> tuple[Tensor, ...]:
        return self.tokens_NM, self.next_NM, self.look_NLM


class TextLoader:
    """Iterates over the batches of one epoch, from any position.

    Order, joining and noise of an epoch are a pure function of (pairs, settings, epoch), so that a position restores
    without what came before.

    Args:
        config: How to make batches.
        pairs: What `read_pairs` gave.
        tokenizer: See `unit_tokens`; units that it does not know become unknown.
        prompt: Has `<speech>` in the place of the source.
        max_positions: Longest sequence that the model takes.
        share: Which batches to make, where several processes have parts of them; None is given for the others.

    Raises:
        UserError: the prompt is none, or a sequence may become too long for the model or for a batch.
    """

    def __init__(
        self,
        config: TextDataConfig,
        pairs: Sequence[Pair],
        tokenizer: Tokenizer,
        prompt: str,
        max_positions: int,
        share: Share = Share(),
    ):
        self.config, self._pairs, self.share = config, pairs, share
        self._before, self._after = encode_prompt(tokenizer, prompt)
        self._end = tokenizer.token_to_id(END)
        ids = tokenizer.get_vocab()
        self._kinds = [BLANK, *sorted(token for token in ids if is_unit(token) and token != BLANK)]
        self._noise = UnitNoise(config.noise, self._kinds)
        number = {unit: i for i, unit in enumerate(self._kinds)}
        # after the units that noise may draw, one more for those that the tokens do not have
        self._unit_ids = np.array([*(ids[unit] for unit in self._kinds), 0])
        self._units, self._source_offsets = _flat(
            [[number.get(unit, len(number)) for unit in pair.source] for pair in pairs]
        )
        self._targets, self._target_offsets = _flat(encode_texts(tokenizer, [pair.target for pair in pairs]))
        self._check_lengths(max_positions)
        self.seek(0)

    def _check_lengths(self, max_positions: int) -> None:
        fixed, most = len(self._before) + len(self._after) + 1, self.config.noise.longest
        sources, targets = np.diff(self._source_offsets), np.diff(self._target_offsets)
        lengths = fixed + most * sources + targets
        worst = int(lengths.argmax())
        # of a joined sequence no more is known than that all of it may be source
        longest = max(int(lengths[worst]), fixed + most * self.config.join)
        for limit, name in ((max_positions, "max_positions of the model"), (self.config.max_tokens, "max_tokens")):
            if longest > limit:
                what = self._pairs[worst].place if longest == lengths[worst] else f"join {self.config.join}"
                raise UserError(f"{what}: a sequence may have {longest} tokens with noise, more than {name}, {limit}")

    def seek(self, epoch: int, start_batch: int = 0) -> None:
        """Moves to a position: the next iteration begins there."""
        self.epoch, self.start_batch = epoch, start_batch
        config, drawn = self.config, epoch if self.config.shuffle else 0
        self._noisy, self._noisy_offsets, self._begins = self._noise(
            self._units, self._source_offsets, self._random(drawn, _NOISE)
        )
        self._groups = self._join(self._random(drawn, _ORDER))
        lengths = np.diff(self._noisy_offsets) + np.diff(self._target_offsets)
        fixed = len(self._before) + len(self._after) + 1
        totals = [fixed + sum(lengths[group]) for group in self._groups]
        plan = BatchPlan(totals, config.max_tokens, config.num_buckets, config.seed, config.shuffle)
        self._batches = plan.epoch(epoch)

    def _join(self, random: np.random.Generator) -> list[list[int]]:
        """Pairs that are one sequence, as indices; their clean lengths decide."""
        join = self.config.join
        if not join:
            return [[i] for i in range(len(self._pairs))]
        lengths = (np.diff(self._source_offsets) + np.diff(self._target_offsets)).tolist()
        limits = np.exp(random.random(len(lengths)) * np.log(join + 1)).astype(int).tolist()
        groups: list[list[int]] = []
        total = limit = 0
        for i in random.permutation(len(lengths)).tolist():
            total += lengths[i]
            if total > limit:
                limit, total = limits[len(groups)], lengths[i]
                groups.append([])
            groups[-1].append(i)
        return groups

    def __len__(self) -> int:
        """Batches from the position to the end of the epoch."""
        return max(0, len(self._batches) - self.start_batch)

    def __iter__(self) -> Iterator[TextBatch | None]:
        for number in range(self.start_batch, len(self._batches)):
            own = self.share.has(number)
            yield self._make([self._groups[i] for i in self._batches[number]]) if own else None

    def _make(self, groups: list[list[int]]) -> TextBatch:
        sequences, starts = zip(*map(self._sequence, groups))
        longest = max(map(len, sequences)) - 1
        tokens_NM = np.zeros((len(groups), longest), dtype=np.int64)
        next_NM = np.full_like(tokens_NM, IGNORED)
        look_NLM = np.full((len(groups), 3, longest), IGNORED, dtype=np.int64)
        for n, (group, sequence, start) in enumerate(zip(groups, sequences, starts)):
            tokens_NM[n, : len(sequence) - 1] = sequence[:-1]
            first = max(start, 1) - 1  # the first token of all is predicted from nothing
            next_NM[n, first : len(sequence) - 1] = sequence[first + 1 :]
            self._guide(group, look_NLM[n])
        ids = [self._pairs[group[0]].place for group in groups]
        return TextBatch(ids, *map(torch.from_numpy, (tokens_NM, next_NM, look_NLM)))

    def _guide(self, group: list[int], look_LM: np.ndarray) -> None:
        """Writes down where to look in some pairs as one sequence."""
        back_M, further_M, unit_M = look_LM
        place, found = len(self._before), []
        for i in group:
            begins = _part(self._begins, self._source_offsets, i)
            found.append(np.where(begins < 0, IGNORED, begins - self._noisy_offsets[i] + place))
            place += self._noisy_offsets[i + 1] - self._noisy_offsets[i]
        place += len(self._after) - 1
        begin = np.concatenate(found)
        begin = begin[begin >= 0]
        back_M[begin[1:]] = begin[:-1]
        further_M[begin[2:]] = begin[:-2]
        start = place
        for i, begins in zip(group, found):
            count = self._target_offsets[i + 1] - self._target_offsets[i]
            if count == len(begins):
                unit_M[place : place + count] = begins
            place += count
        back_M[start + 2 : place + 1] = np.arange(start + 1, place)

    def _sequence(self, group: list[int]) -> tuple[np.ndarray, int]:
        """The tokens of some pairs as one sequence, and from which position on they are to be predicted."""
        sources = [self._unit_ids[_part(self._noisy, self._noisy_offsets, i)] for i in group]
        targets = [_part(self._targets, self._target_offsets, i) for i in group]
        prompt = [self._before, *sources, self._after]
        start = sum(map(len, prompt)) if self.config.loss_on == "target" else 0
        return np.concatenate([*prompt, *targets, [self._end]]).astype(np.int64), start

    def _random(self, epoch: int, stream: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence((self.config.seed, epoch, stream))))


def _flat(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Rows one after the other, and where each begins and the last ends."""
    offsets = np.cumsum([0, *map(len, rows)])
    return np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=offsets[-1]), offsets


def _part(values: np.ndarray, offsets: np.ndarray, i: int) -> np.ndarray:
    return values[offsets[i] : offsets[i + 1]]

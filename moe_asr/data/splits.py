"""Divides the utterances of each speaker: so many to adapt with, so many to choose by, so many to test on."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from moe_asr.data.lines import parse_number, read_lines
from moe_asr.data.manifests import Utterance
from moe_asr.errors import UserError

Order = Literal["contiguous", "random"]


class _HasSpeaker(Protocol):
    @property
    def speaker(self) -> str: ...


Spoken = TypeVar("Spoken", bound=_HasSpeaker)


def read_speakers(path: str | Path) -> list[str]:
    """Names from a text file, one a line; empty lines and what follows a `#` do not count.

    Raises:
        UserError: there is no such file, it is not UTF-8, no name is in it, or one comes twice.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no list of speakers at {path}: expected a text file with one name a line")
    names = [name for line in read_lines(path) if (name := line.partition("#")[0].strip())]
    if not names:
        raise UserError(f"{path} names no speaker")
    if len(set(names)) < len(names):
        raise UserError(f"{path} names speaker {max(names, key=names.count)} twice")
    return names


def read_parts(parts: Sequence[str]) -> dict[str, float]:
    """Fractions by name from `name=fraction`.

    Raises:
        UserError: not of that form, a name that comes twice, or fractions that do not sum to 1.
    """
    fractions: dict[str, float] = {}
    for part in parts:
        name, _, value = part.partition("=")
        try:
            fraction = parse_number(value)
        except ValueError:
            fraction = 0.0
        if not name or name in fractions or not 0 < fraction <= 1:
            raise UserError(f"a part is written name=fraction, as adapt_train=0.4, and each once; not '{part}'")
        fractions[name] = fraction
    if not fractions or abs(sum(fractions.values()) - 1) > 1e-6:
        raise UserError(f"the fractions of {', '.join(parts) or 'no parts'} sum to {sum(fractions.values()):g}, not 1")
    return fractions


def group_by(
    utterances: Sequence[Utterance],
    names: Sequence[str],
    source: str,
    key: Literal["speaker", "accent", "language"] = "speaker",
) -> list[list[Utterance]]:
    """The utterances of each of some speakers, accents or languages, in the order in which they come.

    Args:
        source: Where the utterances come from, for the message.

    Raises:
        UserError: one has no utterance.
    """
    groups: dict[str, list[Utterance]] = {name: [] for name in names}
    for utterance in utterances:
        if getattr(utterance, key) in groups:
            groups[getattr(utterance, key)].append(utterance)
    unknown = [name for name, found in groups.items() if not found]
    if unknown:
        known = sorted({getattr(u, key) for u in utterances} - {""})
        raise UserError(
            f"{source} has no utterance of {key}{'s' * (len(unknown) > 1)} {', '.join(unknown)}; it has {len(known)}"
            f" {key}s, such as {', '.join(known[:3]) or 'none with a name'}; what was rejected is listed beside it"
        )
    return list(groups.values())


def split(
    utterances: Sequence[Utterance], fractions: Sequence[float], order: Order, seed: int = 0
) -> list[list[Utterance]] | None:
    """Divides the utterances of one speaker; None where there are fewer than parts.

    Args:
        utterances: In the order of the recording.
        fractions: Of the parts, with the sum 1; part p ends at utterance round(N * (f_1 + ... + f_p)), moved where a
            part would be empty.
        order: `contiguous` cuts the order as it is; `random` draws the members of each part, which keep their order.
        seed: Of the draw, together with the speaker's name, so that no speaker's division depends on other speakers.
    """
    if len(utterances) < len(fractions):
        return None
    places = list(range(len(utterances)))
    if order == "random":
        random.Random(f"{seed} {utterances[0].speaker}").shuffle(places)
    parts, begin = [], 0
    for number in range(1, len(fractions) + 1):
        end = round(len(places) * sum(fractions[:number]))
        end = min(max(end, begin + 1), len(places) - len(fractions) + number)
        parts.append([utterances[place] for place in sorted(places[begin:end])])
        begin = end
    return parts


def hold_out(utterances: Sequence[Spoken], share: float, seed: int = 0) -> tuple[list[Spoken], list[Spoken]]:
    """Training and development utterances that have no speaker in common, each in the order in which they come.

    In the order of a draw, each speaker is held out with whom the held-out utterances come closer to their share.

    Args:
        share: Of the utterances to hold out; at least one speaker is, and one is left.
        seed: Of the draw.

    Raises:
        UserError: there are not two speakers.
    """
    count = Counter(utterance.speaker for utterance in utterances)
    if len(count) < 2:
        raise UserError(
            f"utterances of {len(count)} speakers cannot be divided by speakers: give a list for development"
        )
    order, goal, held, total = sorted(count), share * len(utterances), set(), 0
    random.Random(seed).shuffle(order)
    for name in order:
        if abs(total + count[name] - goal) < abs(total - goal) and len(held) < len(count) - 1:
            held.add(name)
            total += count[name]
    held = held or {min(order, key=count.__getitem__)}
    return [u for u in utterances if u.speaker not in held], [u for u in utterances if u.speaker in held]


def spread(names: Sequence[str], count: int) -> list[str]:
    """`count` of the names at equal distances: of names sorted by group, each group in proportion.

    Raises:
        UserError: there are fewer.
    """
    if count > len(names):
        raise UserError(f"{count} speakers are wanted, but there are {len(names)}")
    return [names[i * len(names) // count] for i in range(count)]

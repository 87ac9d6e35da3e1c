"""Sentences of a small grammar: commands to a helper at home.

Each template has over a hundred sentences, so that keeping test sentences out of the others leaves enough of its kind.
"""

from __future__ import annotations

import random
import re

_WORDS = {
    "switch": "on off",
    "device": "light radio heater fan television oven",
    "room": "kitchen bedroom garden office garage bathroom",
    "colour": "red blue green yellow black white brown purple",
    "object": "bottle box book cup plate basket jacket key",
    "where": "on under behind beside",
    "furniture": "table chair shelf sofa window door",
    "number": "two three four five six seven eight nine ten twelve twenty thirty",
    "name": "anna william maria peter julia thomas sarah george",
    "when": "before after at",
    "genre": "jazz classical folk dance piano",
    "place": "station market school hospital library museum",
    "size": "cheap quiet large small good",
    "food": "apples eggs lemons potatoes carrots bananas",
    "day": "monday tuesday wednesday thursday friday saturday sunday",
    "time": "morning evening afternoon",
    "thing": "letter message parcel picture",
}
_TEMPLATES = (
    "turn {switch} the {device} in the {room} at {number}",
    "put the {colour} {object} {where} the {furniture}",
    "move the {object} from the {furniture} to the {room}",
    "call {name} {when} {number} on {day}",
    "play some {genre} music in the {room} on {day}",
    "find a {size} {place} near the {place}",
    "buy {number} {food} and {number} {food}",
    "send the {thing} to {name} on {day} {time}",
    "how far is the {size} {place} from the {place}",
    "will it rain at the {place} on {day} {time}",
    "wake {name} {when} {number} in the {time}",
    "give {name} the {colour} {object}",
)


def sentence(generator: random.Random) -> str:
    """One random sentence."""
    template = generator.choice(_TEMPLATES)
    return re.sub(r"\{(\w+)\}", lambda slot: generator.choice(_WORDS[slot.group(1)].split()), template)


def sentences(count: int, generator: random.Random, unlike: set[str] = frozenset()) -> list[str]:
    """Random sentences, none of which is among `unlike`."""
    found: list[str] = []
    while len(found) < count:
        candidate = sentence(generator)
        if candidate not in unlike:
            found.append(candidate)
    return found

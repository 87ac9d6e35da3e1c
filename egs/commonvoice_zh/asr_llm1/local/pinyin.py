"""Mandarin text as sounds for an encoder to write, and pairs of syllables and text for training a language model.

A character has one unit for its initial, if it has one, one for its final and one for its tone: 大使馆 is
`d a 4 sh i 3 g uan 3`, and what a language model reads for it `[da4] [shi3] [guan3]`. Finals are written as they sound:
圆 is `van 2` and 全 `q van 2`, not `y uan` and `q uan`; there are no y and w. The neutral tone is 5. Characters are
read in their context, by pypinyin's dictionary of phrases.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate

from pypinyin import Style, lazy_pinyin
from pypinyin.contrib.tone_convert import to_finals, to_initials

from moe_asr.config import run_command
from moe_asr.data.tables import read_table, write_table
from moe_asr.errors import UserError
from moe_asr.files import atomic_write

INITIALS = tuple("b p m f d t n l g k h j q x zh ch sh r z c s".split())
_WITHOUT = "?"  # in place of the sound of a character that has none
Syllable = tuple[str, ...]
"""Initial if there is one, final and tone, such as ("d", "a", "4")."""


@dataclass(frozen=True)
class PinyinConfig:
    """Writes a table with units in the place of its text, or pairs of syllables and text, or both.

    Utterances with a character that has no Mandarin reading (Latin, Greek or Cyrillic letters, digits, kana, characters
    that the dictionary lacks) are left out and counted: what was said there is not known.

    Args:
        table: Table with normalised text; for pairs, of training data.
        out_table: Table to write, with units separated by spaces as its text.
        out_pairs: JSON lines to write, {"source": "[da4] [shi3]", "target": "..."}.
        out_confusions: JSON file to write of the syllables of the pairs that sound alike, see `confusions`.
        words: How many words to add to the pairs, drawn from jieba's word list; 0 for none.
        word_power: A word is drawn with a probability that goes as its frequency to this power.
        most_characters: Words are made of the characters of the table and of so many others, the most frequent ones
            of the list.
        seed: Of the words drawn.
    """

    table: str
    out_table: str = ""
    out_pairs: str = ""
    out_confusions: str = ""
    words: int = 0
    word_power: float = 0.7
    most_characters: int = 4000
    seed: int = 0


def read(text: str) -> list[Syllable] | None:
    """Syllables of a text, one for each character; None if a character has no reading."""
    syllables = lazy_pinyin(text, style=Style.TONE3, neutral_tone_with_five=True, errors=lambda run: [_WITHOUT])
    parts = [_parts(syllable) for syllable in syllables]
    return None if None in parts else parts


@lru_cache(maxsize=None)
def _parts(syllable: str) -> Syllable | None:
    """Parts of a syllable such as `shi3`."""
    initial, final, tone = to_initials(syllable, strict=True), to_finals(syllable, strict=True), syllable[-1:]
    if not tone.isdigit() or not (initial or final):
        return None
    if not final:  # interjections such as hm5
        initial, final = "", syllable[:-1]
    return tuple(part for part in (initial, final, tone) if part)


def unit(syllable: Syllable) -> str:
    """What stands for it in the source of a language model: `[da4]`."""
    return f"[{''.join(syllable)}]"


def pair(text: str, syllables: list[Syllable]) -> dict[str, str]:
    """One line for training a language model."""
    return {"source": " ".join(map(unit, syllables)), "target": text}


def confusions(syllables: set[Syllable]) -> dict[str, dict[str, float]]:
    """What a syllable is taken for: those that differ in its initial, or final, or tone, and not in two of them.

    Each of the three is wrong equally often, and becomes any other with equal probability.
    """
    split = {syllable: ("" if len(syllable) == 2 else syllable[0], *syllable[-2:]) for syllable in syllables}
    alike: dict[tuple, list[Syllable]] = {}
    for syllable, parts in split.items():
        for place in range(3):
            alike.setdefault((place, *parts[:place], *parts[place + 1 :]), []).append(syllable)
    table: dict[str, dict[str, float]] = {unit(syllable): {} for syllable in sorted(syllables)}
    for group in alike.values():
        for syllable in group:
            others = sorted(unit(other) for other in group if other != syllable)
            table[unit(syllable)].update(dict.fromkeys(others, round(1 / max(1, len(others)), 4)))
    return {name: dict(sorted(row.items())) for name, row in table.items() if row}


def read_words(characters: set[str], most: int) -> dict[str, int]:
    """Words of jieba's list (MIT licence) with their frequencies.

    Args:
        characters: They may be made of these,
        most: and of so many others, the most frequent ones of the list.
    """
    import jieba  # takes a while, and only pairs need it

    with jieba.get_dict_file() as file:
        words = {word: int(count) for word, count, *_ in (line.decode().split() for line in file)}
    counts = Counter()
    for word, count in words.items():
        counts.update(dict.fromkeys(word, count))
    others = sorted((c for c in counts if c not in characters), key=lambda c: (-counts[c], c))
    known = characters | set(others[:most])
    return {word: count for word, count in words.items() if known.issuperset(word)}


def draw(words: dict[str, int], number: int, power: float, seed: int) -> list[str]:
    """Words with a probability that goes as count^power, with replacement."""
    weights = list(accumulate(count**power for count in words.values()))
    return random.Random(seed).choices(list(words), cum_weights=weights, k=number)


def pinyin(config: PinyinConfig) -> None:
    if not (config.out_table or config.out_pairs):
        raise UserError("give out_table or out_pairs, or both, to write")
    rows = read_table(config.table)
    kept = [(row, found) for row in rows if (found := read(row.text))]  # without empty ones
    if not kept:
        raise UserError(f"{config.table}: no text with a Mandarin reading; is it normalised?")
    if config.out_table:
        write_table(config.out_table, [replace(row, text=" ".join(sum(found, ()))) for row, found in kept])
        print(f"{config.out_table}: {len(kept)} utterances, {len(rows) - len(kept)} left out")
    if config.out_pairs:
        texts = [(row.text, found) for row, found in kept]
        if config.words:
            words = read_words(set("".join(row.text for row, _ in kept)), config.most_characters)
            drawn = draw(words, config.words, config.word_power, config.seed)
            texts += [(word, found) for word in drawn if (found := read(word))]
        with atomic_write(config.out_pairs) as file:
            file.writelines(json.dumps(pair(*text), ensure_ascii=False) + "\n" for text in texts)
        print(f"{config.out_pairs}: {len(kept)} utterances, {len(texts) - len(kept)} words")
        if config.out_confusions:
            table = confusions({syllable for _, found in texts for syllable in found})
            with atomic_write(config.out_confusions) as file:
                json.dump(table, file)
            print(f"{config.out_confusions}: {len(table)} syllables")


if __name__ == "__main__":
    run_command(PinyinConfig, pinyin)

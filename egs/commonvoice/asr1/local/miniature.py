"""Makes a miniature of Common Voice: its folders, lists and mp3 clips for four languages in four scripts."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from pathlib import Path

import soundfile

from moe_asr.config import run_command
from moe_asr.data.miniature import SAMPLE_RATE, random_voice, speak
from moe_asr.files import atomic_write

# by language: the voice of espeak-ng, and words of which sentences are made
LANGUAGES = {
    "de": ("de", "eins zwei drei vier fünf", "Hunde Katzen Vögel"),
    "el": ("el", "ένα δύο τρία πέντε έξι", "σκύλοι γάτες πουλιά"),
    "ru": ("ru", "один два три шесть пять", "собаки кошки птицы"),
    "zh-CN": ("cmn", "一 二 三 四 五", "狗 猫 鸟"),
}
_COLUMNS = "client_id path sentence up_votes down_votes age gender accents variant locale segment".split()


@dataclass(frozen=True)
class MiniatureConfig:
    """Makes a release of Common Voice for each language; the first lacks dev.tsv, as small copies of the corpus do.

    Args:
        out_dir: For the languages' folders.
        languages: Which of them.
        train: Clips for training, of each language.
        test: Clips for development, and as many to test.
        speakers: Of each list.
        num_jobs: Processes.
    """

    out_dir: str
    languages: tuple[str, ...] = tuple(LANGUAGES)
    train: int = 12
    test: int = 3
    speakers: int = 3
    num_jobs: int = 2


def sentence(language: str, generator: random.Random) -> str:
    """Two numbers and a noun; with a full stop, as people write."""
    _, numbers, nouns = LANGUAGES[language]
    words = [*(generator.choice(numbers.split()) for _ in range(2)), generator.choice(nouns.split())]
    return "".join(words) + "。" if language == "zh-CN" else " ".join(words).capitalize() + "."


def make_miniature(config: MiniatureConfig) -> None:
    sizes = {"train": config.train, "dev": config.test, "test": config.test}
    for language in config.languages:
        texts = {
            f"{language}-{part}-{number}": [
                sentence(language, random.Random(f"{language} {part} {clip}"))
                for clip in range(number, size, config.speakers)
            ]
            for part, size in sizes.items()
            for number in range(config.speakers)
        }
        voices = {name: random_voice(name, LANGUAGES[language][0]) for name in texts}
        _write(Path(config.out_dir) / language, language, texts, speak(texts, config.num_jobs, voices))
    print(f"{config.out_dir}: {sum(sizes.values())} clips in each of {len(config.languages)} languages")


def _write(folder: Path, language: str, texts: dict[str, list[str]], spoken: dict) -> None:
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    lists: dict[str, list[list[str]]] = {part: [] for part in ("train", "dev", "test")}
    for name, sentences in texts.items():
        client = hashlib.sha512(name.encode()).hexdigest()
        for number, (text, samples) in enumerate(zip(sentences, spoken[name])):
            path = f"common_voice_{language}_{int(client[:6], 16) + number}.mp3"
            soundfile.write(folder / "clips" / path, samples, SAMPLE_RATE, format="MP3")
            part = name.rsplit("-", 2)[-2]
            lists[part].append([client, path, text, "2", "0", "", "", "", "", language, ""])
    lists["validated"] = [line for lines in lists.values() for line in lines]
    if folder.name == next(iter(LANGUAGES)):
        lists["train"] += lists.pop("dev")
    for name, lines in lists.items():
        with atomic_write(folder / f"{name}.tsv") as file:
            file.writelines("\t".join(line) + "\n" for line in [_COLUMNS, *lines])


if __name__ == "__main__":
    run_command(MiniatureConfig, make_miniature)

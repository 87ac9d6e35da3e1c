"""Makes miniatures of KeSpeech and AISHELL-1 in their layouts: artificial voices, few words, three accents.

What the recipe does not read is left out: KeSpeech's `Metadata/` and its other tasks, AISHELL's `resource_aishell/`.
The speakers of AISHELL are unpacked. Speakers of training, dev and test are different ones, and so are their sentences;
within dev and within test all accents say the same sentences.

Some transcripts of KeSpeech are in traditional characters or have digits; in `train_phase1`, one is empty and one
recording is cut off, to be found and rejected.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import soundfile
from accents import ACCENTS, Accent, pronounce
from grammar import Sentence, sentences

from moe_asr.config import run_command
from moe_asr.data.miniature import SAMPLE_RATE, Voice, pieces, random_voice, speak
from moe_asr.files import atomic_write

FIRST_SPEAKER = {"train": 2, "dev": 724, "test": 764}  # of AISHELL


@dataclass(frozen=True)
class MiniatureConfig:
    """Makes KeSpeech/ and aishell/ in small.

    Args:
        out_dir: Folder for KeSpeech/ and aishell/.
        num_jobs: Processes.
        train: Utterances of each accent, and of KeSpeech's Mandarin, in train_phase1; a quarter more in train_phase2.
        dev: Utterances of each accent in dev_phase1; a quarter more in dev_phase2.
        test: Utterances of each accent.
        general_train: Utterances of AISHELL; numbers also below.
        general_dev: For its dev part.
        general_test: For its test part.
        speakers: In training, of each accent and for each hundred utterances of AISHELL; two in each dev and test.
        seed: Of sentences and voices.
    """

    out_dir: str = "downloads"
    num_jobs: int = 2
    train: int = 80
    dev: int = 10
    test: int = 20
    general_train: int = 600
    general_dev: int = 30
    general_test: int = 40
    speakers: int = 4
    seed: int = 0


@dataclass(frozen=True)
class Speaker:
    """Somebody with all that is to be said, and where it belongs.

    Args:
        part: Of the corpus.
        accent: A name in ACCENTS.
        files: Paths of the recordings, relative to the corpus.
    """

    name: str
    part: str
    accent: str
    lines: tuple[Sentence, ...]
    files: tuple[str, ...]

    def voice(self, seed: int) -> Voice:
        accent: Accent = ACCENTS[self.accent]
        voice = random_voice(f"{seed} {self.name}", "cmn")
        stretch = random.Random(f"stretch {seed} {self.name}").uniform(0.92, 1.1)
        return replace(voice, rate=int(voice.rate * accent.pace), range=accent.range, stretch=stretch)


def plan_aishell(config: MiniatureConfig, texts: dict[str, list[Sentence]]) -> list[Speaker]:
    """Speakers S0002 and on in train, S0724 in dev, S0764 in test."""
    speakers = []
    for part, first in FIRST_SPEAKER.items():
        count = max(2, config.speakers * len(texts[part]) // 100) if part == "train" else 2
        for number, lines in enumerate(pieces(texts[part], count), first):
            name = f"S{number:04d}"
            files = (f"data_aishell/wav/{part}/{name}/BAC009{name}W{n:04d}.wav" for n in range(121, 121 + len(lines)))
            speakers.append(Speaker(name, part, "Mandarin", tuple(lines), tuple(files)))
    return speakers


def plan_kespeech(accent: str, first: int, count: int, texts: dict[str, list[Sentence]]) -> list[Speaker]:
    """Speakers of one accent by their seven-digit numbers; those of the second phases are those of the first ones."""
    speakers = []
    for part, lines in texts.items():
        kind, _, phase = part.partition("_")
        start = first + 100 * ("train", "dev", "test").index(kind)
        for number, own in enumerate(pieces(lines, count if kind == "train" else 2), start):
            stems = (f"{number}_{zlib.crc32(f'{number} {part} {n}'.encode()):08x}" for n in range(len(own)))
            files = (f"Audio/{number}/{phase or 'phase1'}/{stem}.wav" for stem in stems)
            speakers.append(Speaker(str(number), part, accent, tuple(own), tuple(files)))
    return speakers


def record(corpus: Path, speakers: Sequence[Speaker], config: MiniatureConfig) -> None:
    """Writes all recordings of a corpus."""
    # by part and name, because a speaker of both phases is recorded twice
    keys = {f"{s.part} {s.name}": s for s in speakers}
    said = {key: [pronounce(line.pinyin, ACCENTS[s.accent]) for line in s.lines] for key, s in keys.items()}
    spoken = speak(said, config.num_jobs, {key: s.voice(config.seed) for key, s in keys.items()})
    for key, speaker in keys.items():
        for file, samples in zip(speaker.files, spoken[key]):
            (corpus / file).parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(corpus / file, samples, SAMPLE_RATE, subtype="PCM_16")


def write_aishell(corpus: Path, speakers: Sequence[Speaker]) -> None:
    """The list of transcripts, words separated by spaces."""
    with atomic_write(corpus / "data_aishell/transcript/aishell_transcript_v0.8.txt") as file:
        for speaker in speakers:
            for path, line in zip(speaker.files, speaker.lines):
                file.write(f"{Path(path).stem} {' '.join(line.words)}\n")


def write_kespeech(corpus: Path, speakers: Sequence[Speaker], generator: random.Random) -> None:
    """The lists of all parts, and what is wrong in the first one."""
    for part in dict.fromkeys(speaker.part for speaker in speakers):
        members = [s for s in speakers if s.part == part]
        entries = [(s, file, line) for s in members for file, line in zip(s.files, s.lines)]
        texts = [generator.choice((line.text,) * 8 + (line.traditional(), line.with_digits())) for *_, line in entries]
        if part == "train_phase1":
            texts[-1] = ""
            cut_off = corpus / entries[-2][1]
            cut_off.write_bytes(cut_off.read_bytes()[:30])
        names = [Path(file).stem for _, file, _ in entries]
        lists = {
            "text": texts,
            "wav.scp": [file for _, file, _ in entries],
            "utt2spk": [s.name for s, *_ in entries],
            "utt2subdialect": [s.accent for s, *_ in entries],
        }
        for name, values in lists.items():
            with atomic_write(corpus / "Tasks/ASR" / part / name) as file:
                file.writelines(f"{key} {value}\n" for key, value in zip(names, values))


def make_miniature(config: MiniatureConfig) -> None:
    generator = random.Random(config.seed)
    test = sentences(max(config.test, config.general_test), generator)
    more_train, more_dev = max(1, config.train // 4), max(1, config.dev // 4)  # for the second phases
    dev = sentences(max(config.dev + more_dev, config.general_dev), generator, {line.text for line in test})
    held_out = {line.text for line in (*test, *dev)}

    aishell = {"train": sentences(config.general_train, generator, held_out)}
    aishell |= {"dev": dev[: config.general_dev], "test": test[: config.general_test]}
    everyone = plan_aishell(config, aishell)
    folder = Path(config.out_dir) / "aishell"
    record(folder, everyone, config)
    write_aishell(folder, everyone)
    print(f"{folder}: {sum(len(s.lines) for s in everyone)} utterances of {len(everyone)} speakers")

    everyone = []
    for first, accent in enumerate(ACCENTS):
        train = sentences(config.train + more_train, generator, held_out)
        parts = {"train_phase1": train[: config.train], "train_phase2": train[config.train :]}
        parts |= {"dev_phase1": dev[: config.dev], "dev_phase2": dev[config.dev : config.dev + more_dev]}
        parts["test"] = test[: config.test]
        everyone += plan_kespeech(accent, 1_000_001 + 1000 * first, config.speakers, parts)
    folder = Path(config.out_dir) / "KeSpeech"
    record(folder, everyone, config)
    write_kespeech(folder, everyone, generator)
    print(f"{folder}: {sum(len(s.lines) for s in everyone)} utterances of {len({s.name for s in everyone})} speakers")


if __name__ == "__main__":
    run_command(MiniatureConfig, make_miniature)

"""Speaks the miniature corpus with espeak-ng: one general accent and some others, each by many artificial speakers.

Voices and speakers of the train, dev and test sets are disjoint, and so are the sentences; within dev and within test
all accents say the same sentences. The same seed gives the same files for any number of jobs.
"""

from __future__ import annotations

import multiprocessing
import random
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from grammar import sentences

from moe_asr.config import run_command
from moe_asr.data.audio import resample
from moe_asr.data.espeak import Synthesiser
from moe_asr.data.tables import Row, write_table

RATE = 16000
ACCENTS = {
    "american": "en-us",
    "scottish": "en-gb-scotland",
    "caribbean": "en-029",
    "german": "de",
    "french": "fr",
    "spanish": "es",
}
GENERAL = "american"
# timbres that can be understood, by set; whispering, croaking and robot voices are left out
VOICES = {
    "train": "adam Alex Andrea Andy anika Annie antonio aunty benjamin boris caleb david Denis Diogo ed edward f1 f2 f4"
    " f5 Gene Gene2 grandma gustave Henrique ian iven iven3 john klatt klatt2 klatt4 Lee linda m1 m2 m3 m5 m6 m8"
    " Marco max Michael miguel Mike norbert pablo paul quincy rob Reed shelby steph steph2 travis zac",
    "dev": "belinda grandpa Hugo klatt3 m7 pedro victor",
    "test": "announcer edward2 f3 iven2 iven4 klatt5 klatt6 m4 marcelo Mario michel mike2 Nguyen robert sandro"
    " Storm Jacky",
}


@dataclass(frozen=True)
class SynthesiseConfig:
    """Speaks the miniature corpus and writes its tables.

    Args:
        out_dir: For the audio, and for the tables train_general.tsv, train_accents.tsv, dev_general.tsv,
            dev_accents.tsv and test.tsv.
        seed: Of sentences, speakers and noise.
        num_jobs: Processes.
        general_train: Number of utterances in the general accent, American English; numbers also below.
        general_dev: In the general accent.
        accent_train: In each other accent.
        accent_dev: In each other accent.
        test: In each accent.
    """

    out_dir: str = "data"
    seed: int = 0
    num_jobs: int = 2
    general_train: int = 2200
    general_dev: int = 80
    accent_train: int = 200
    accent_dev: int = 40
    test: int = 100


@dataclass(frozen=True)
class Speaker:
    """One artificial speaker, with all its sentences.

    Args:
        stretch: Factor on all frequencies, which stands for the length of the vocal tract.
        tilt: Of the spectrum: the weight of a first-order difference.
        snr: Signal to noise ratio in dB.
    """

    name: str
    accent: str
    voice: str
    pace: int
    pitch: int
    range: int
    stretch: float
    tilt: float
    snr: float
    lines: tuple[tuple[str, str], ...]  # (id, text)
    folder: str

    def speak(self) -> list[Row]:
        """Writes the audio of all sentences; to be called in a fresh process, see Synthesiser."""
        synthesiser = Synthesiser(seed=zlib.crc32(self.name.encode()))
        noise = np.random.default_rng(zlib.crc32(self.name.encode()))
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        rows = []
        for name, text in self.lines:
            samples, rate = synthesiser.speak(text, ACCENTS[self.accent], self.voice, self.pace, self.pitch, self.range)
            samples = resample(samples, rate * self.stretch, RATE)
            samples[1:] -= self.tilt * samples[:-1]
            power = float(np.mean(samples**2)) + 1e-9
            samples += noise.normal(0, (power * 10 ** (-self.snr / 10)) ** 0.5, samples.shape).astype(np.float32)
            samples *= 10 ** noise.uniform(-1.2, -0.1) / np.abs(samples).max()
            path = Path(self.folder) / f"{name}.wav"
            soundfile.write(path, samples, RATE, subtype="PCM_16")
            rows.append(Row(name, str(path.absolute()), text, speaker=self.name, accent=self.accent, language="en"))
        return rows


def make_speakers(part: str, accent: str, count: int, texts: list[str], config: SynthesiseConfig) -> list[Speaker]:
    """`count` random speakers who share the sentences evenly."""
    generator = random.Random(f"{config.seed} {part} {accent}")
    voices = VOICES[part].split()
    generator.shuffle(voices)
    speakers = []
    for i in range(count):
        name = f"{part}-{accent}-{i:02d}"
        stretch = generator.uniform(0.9, 1.12)
        speakers.append(
            Speaker(
                name=name,
                accent=accent,
                voice=voices[i % len(voices)],
                pace=int(generator.uniform(150, 205) / stretch),
                pitch=generator.randint(25, 75),
                range=generator.randint(20, 80),
                stretch=stretch,
                tilt=generator.uniform(-0.3, 0.6),
                snr=generator.uniform(15, 35),
                lines=tuple((f"{name}-{n:03d}", text) for n, text in enumerate(texts[i::count])),
                folder=f"{config.out_dir}/wav/{part}/{accent}",
            )
        )
    return speakers


def plan(config: SynthesiseConfig) -> dict[str, list[Speaker]]:
    """Speakers of each table. Dev and test sentences occur in no other set."""
    generator = random.Random(config.seed)
    others = [accent for accent in ACCENTS if accent != GENERAL]
    test = sentences(config.test, generator)
    dev = sentences(max(config.general_dev, config.accent_dev), generator, set(test))
    held_out = {*test, *dev}

    def train(accent: str, count: int, num_speakers: int) -> list[Speaker]:
        return make_speakers("train", accent, num_speakers, sentences(count, generator, held_out), config)

    def accented(part: str, texts: list[str], num_speakers: int) -> list[Speaker]:
        return [s for accent in others for s in make_speakers(part, accent, num_speakers, texts, config)]

    return {
        "test": make_speakers("test", GENERAL, 10, test, config) + accented("test", test, 10),
        "dev_general": make_speakers("dev", GENERAL, 7, dev[: config.general_dev], config),
        "dev_accents": accented("dev", dev[: config.accent_dev], 4),
        "train_general": train(GENERAL, config.general_train, 100),
        "train_accents": [s for accent in others for s in train(accent, config.accent_train, 20)],
    }


def synthesise(config: SynthesiseConfig) -> None:
    tables = plan(config)
    everyone = [speaker for speakers in tables.values() for speaker in speakers]
    # a fresh process for each speaker makes the samples independent of the number of jobs
    with multiprocessing.get_context("fork").Pool(config.num_jobs, maxtasksperchild=1) as pool:
        rows = dict(zip((s.name for s in everyone), pool.imap(Speaker.speak, everyone)))
    for name, speakers in tables.items():
        write_table(f"{config.out_dir}/{name}.tsv", [row for speaker in speakers for row in rows[speaker.name]])
        print(f"{name}: {sum(len(s.lines) for s in speakers)} utterances of {len(speakers)} speakers")


if __name__ == "__main__":
    run_command(SynthesiseConfig, synthesise)

"""Makes a miniature of TED-LIUM 3: its folders and formats; artificial voices and few sentences."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from moe_asr.config import run_command
from moe_asr.data.miniature import SAMPLE_RATE, sentences, speak
from moe_asr.files import atomic_write

# by distribution and talk: how many sentences
PARTS = {
    "legacy/train": {"AnnaOne_2001": 6, "BobTwo_2002": 6, "CarlThree_2003": 6, "DoraFour_2004": 6},
    "legacy/dev": {"EdFive_2005": 4},
    "legacy/test": {"FayeSix_2006": 2},
    "speaker-adaptation/test": {"AmandaBurden_2014": 8, "BenDunlap_2007": 8},
}
PAUSE = 0.4  # seconds between sentences
# what transcripts hold besides words, which is not spoken here
MARKS = ("{} <unk>", "{{NOISE}} {}", "{}(2)", "{} {{COUGH}}")


@dataclass(frozen=True)
class MiniatureConfig:
    """Makes TEDLIUM_release-3/ in small.

    Args:
        out_dir: Folder for TEDLIUM_release-3/.
        num_jobs: Processes.
    """

    out_dir: str = "downloads"
    num_jobs: int = 2


def write_talk(corpus: Path, talk: str, texts: list[str], spoken: list[np.ndarray]) -> None:
    """Writes one recording, data/sph/TALK.sph, and its transcript, data/stm/TALK.stm."""
    noise, place = np.random.default_rng(0), 0.0
    pieces, lines = [], []
    for number, (text, samples) in enumerate(zip(texts, spoken)):
        pause = noise.normal(0, 1e-3, int(PAUSE * SAMPLE_RATE))
        begin, end = place + PAUSE, place + PAUSE + len(samples) / SAMPLE_RATE
        ignored = "ignore_time_segment_in_scoring"
        lines.append(f"{talk} 1 inter_segment_gap {place:.2f} {begin:.2f} <o,,unknown> {ignored}")
        lines.append(f"{talk} 1 {talk} {begin:.2f} {end:.2f} <o,f0,female> {MARKS[number % len(MARKS)].format(text)}")
        pieces += [pause, samples]
        place = end
    (corpus / "data" / "sph").mkdir(parents=True, exist_ok=True)
    samples = np.concatenate(pieces).astype(np.float32)
    soundfile.write(corpus / "data" / "sph" / f"{talk}.sph", samples, SAMPLE_RATE, format="NIST", subtype="PCM_16")
    with atomic_write(corpus / "data" / "stm" / f"{talk}.stm") as file:
        file.writelines(f"{line}\n" for line in lines)


def make_miniature(config: MiniatureConfig) -> None:
    corpus = Path(config.out_dir) / "TEDLIUM_release-3"
    texts = {talk: sentences(count, talk) for talks in PARTS.values() for talk, count in talks.items()}
    spoken = speak(texts, config.num_jobs)
    for talk in texts:
        write_talk(corpus, talk, texts[talk], spoken[talk])
    # the people to adapt to are in the legacy distribution too
    everyone = {**PARTS, "legacy/train": PARTS["legacy/train"] | PARTS["speaker-adaptation/test"]}
    for part, talks in everyone.items():
        for kind in ("sph", "stm"):
            (corpus / part / kind).mkdir(parents=True, exist_ok=True)
            for talk in talks:
                link = corpus / part / kind / f"{talk}.{kind}"
                link.unlink(missing_ok=True)
                link.symlink_to(f"../../../data/{kind}/{talk}.{kind}")
    print(f"{corpus}: {sum(map(len, texts.values()))} segments of {len(texts)} talks")


if __name__ == "__main__":
    run_command(MiniatureConfig, make_miniature)

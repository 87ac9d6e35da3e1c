"""Divides the utterances of each of some speakers into manifests, such as 40 / 20 / 40 % to adapt, choose and test."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from moe_asr.config import run_command


@dataclass(frozen=True)
class SplitConfig:
    """Divides the utterances of each of some speakers into manifests; each manifest holds all of these speakers.

    A speaker with too few utterances for every part to get one is left out, with a warning.

    Args:
        manifest: Checked utterances with their speakers, as bin/prepare writes them.
        speakers: Text file with the names of the speakers, one a line.
        parts: name=fraction, in order; on the command line repeat --parts+. Part NAME goes to NAME.jsonl.gz.
        out_dir: Folder for the manifests.
        used: To write there: the list of the speakers who are not left out.
        order: contiguous cuts each speaker's utterances in the manifest's order; random draws them.
        seed: Of the draw.
    """

    manifest: str
    speakers: str
    parts: list[str]
    out_dir: str
    used: str
    order: Literal["contiguous", "random"] = "contiguous"
    seed: int = 0


def split_speakers(config: SplitConfig) -> None:
    """Runs the command."""
    from moe_asr.data.manifests import read_manifests, summary, write_manifest
    from moe_asr.data.splits import group_by, read_parts, read_speakers, split
    from moe_asr.errors import UserError
    from moe_asr.files import atomic_write

    parts = read_parts(config.parts)
    speakers = read_speakers(config.speakers)
    manifests, used = {name: [] for name in parts}, []
    for speaker, own in zip(speakers, group_by(read_manifests([config.manifest]), speakers, config.manifest)):
        divided = split(own, list(parts.values()), config.order, config.seed)
        if divided is None:
            few = f"{len(own)} utterance{'s' * (len(own) > 1)}"
            print(f"warning: speaker {speaker} is left out: {few}, too few for {', '.join(parts)}", file=sys.stderr)
            continue
        used.append(speaker)
        for name, chosen in zip(parts, divided):
            manifests[name] += chosen
    if not used:
        raise UserError(f"no speaker of {config.speakers} has enough utterances for {', '.join(parts)}")
    out_dir = Path(config.out_dir)
    for name, utterances in manifests.items():
        write_manifest(out_dir / f"{name}.jsonl.gz", utterances)
        print(f"{name}: {summary(utterances)}")
    with atomic_write(out_dir / config.used) as file:
        file.writelines(f"{speaker}\n" for speaker in used)


if __name__ == "__main__":
    run_command(SplitConfig, split_speakers)

"""How long it takes to go on in the middle of an epoch: `python tools/bench/resume.py --cuts 1000000`.

A position is two numbers, so the time must not depend on how much was consumed. In CPU seconds of this process:
planning an epoch from the beginning, and from 10, 50, 90 and 99.9 % of it on; then reading the first batch there, as
training does after a restart (one recording serves all cuts).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

from moe_asr.data import batches
from moe_asr.data.manifests import Utterance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cuts", type=int, default=1_000_000)
    options = parser.parse_args()
    durations = np.clip(np.random.default_rng(0).lognormal(1.4, 0.5, options.cuts), 0.5, 30)
    with tempfile.TemporaryDirectory() as folder:
        audio = Path(folder) / "a.wav"
        soundfile.write(audio, np.zeros(30 * 16000, dtype="float32"), 16000)
        utterances = [
            Utterance(f"u{i}", str(audio), 30 * 16000, 16000, "", duration=round(float(d), 2))
            for i, d in enumerate(durations)
        ]
        batches.read_manifests = lambda manifests: utterances  # what is measured is the position, not the reading
        config = batches.DataConfig(["cuts"], max_duration=200.0, speed_factors=(0.9, 1.0, 1.1))
        loader, seconds = timed(lambda: batches.BatchLoader(config, None))
        count = len(loader)
        print(f"{options.cuts:,} cuts, {count:,} batches an epoch; a fresh start plans its epoch in {seconds:.2f} s")
        for share in (0.0, 0.1, 0.5, 0.9, 0.999):
            start = int(share * count)
            _, planned = timed(lambda: loader.seek(3, start))
            _, loaded = timed(lambda: next(iter(loader)))
            print(
                f"going on after {start:>7,} batches of epoch 4: {planned:.2f} s, first batch after {loaded:.2f} s more"
            )


def timed(run):
    """What `run` returns, and the CPU seconds it took."""
    begin = time.process_time()
    return run(), time.process_time() - begin


if __name__ == "__main__":
    main()

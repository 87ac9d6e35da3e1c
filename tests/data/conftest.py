"""Small recordings and tables for the tests of data/."""

import numpy as np
import pytest
import soundfile


@pytest.fixture
def make_audio(tmp_path):
    """Writes noise of so many seconds and returns its path."""

    def make(name="a.wav", seconds=1.0, rate=16000, seed=0, **keywords):
        samples = np.random.default_rng(seed).normal(0, 0.1, round(seconds * rate)).astype(np.float32)
        path = tmp_path / name
        soundfile.write(path, samples, rate, **keywords)
        return str(path)

    return make

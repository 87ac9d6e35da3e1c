"""Speech itself is tested by the recipe that trains on it; here, that there is some and that parameters act."""

import subprocess
import sys

import numpy as np
import pytest

from moe_asr.data.espeak import Synthesiser
from moe_asr.errors import UserError

pytest.importorskip("espeakng_loader", reason="espeakng-loader is not installed (extra [mini])")
TEXT = "turn on the light in the kitchen"


@pytest.fixture(scope="module")
def synthesiser():
    return Synthesiser()


def test_speaks(synthesiser):
    samples, rate = synthesiser.speak(TEXT)
    assert rate == synthesiser.sample_rate == 22050 and samples.dtype == np.float32 and samples.ndim == 1
    assert 1.0 < len(samples) / rate < 3.0 and 0.1 < np.abs(samples).max() <= 1.0
    longer, _ = synthesiser.speak(TEXT + " and " + TEXT)
    assert len(longer) > 1.8 * len(samples)


def test_rate_pitch_and_text_act(synthesiser):
    slow, _ = synthesiser.speak(TEXT, rate=120)
    fast, _ = synthesiser.speak(TEXT, rate=240)
    assert len(slow) > 1.5 * len(fast)

    def pitch(value):
        samples, rate = synthesiser.speak("aaaaaah", pitch=value, range=0)
        middle = samples[len(samples) // 3 : len(samples) // 3 + 4096]
        spectrum = np.abs(np.fft.rfft(middle * np.hanning(4096)))
        correlation = np.fft.irfft(spectrum**2)
        low, high = rate // 400, rate // 50
        return rate / (low + np.argmax(correlation[low:high]))

    assert pitch(90) > 1.4 * pitch(10)


@pytest.mark.parametrize("voice", ["en-gb-scotland", "en-029", "de", "cmn"])
def test_voices_differ(synthesiser, voice):
    assert len(synthesiser.speak(TEXT, voice)[0]) != len(synthesiser.speak(TEXT, "en-us")[0])


def test_variants_differ(synthesiser):
    assert {"f1", "m3", "klatt"} <= set(synthesiser.variants())
    male, female = (np.abs(np.fft.rfft(synthesiser.speak(TEXT, variant=v)[0], 65536)) for v in ("m3", "f1"))
    assert np.corrcoef(male, female)[0, 1] < 0.9


def test_two_objects_share_the_library(synthesiser):
    other = Synthesiser()
    assert len(other.speak(TEXT)[0]) > 20000 and len(synthesiser.speak(TEXT)[0]) > 20000


def test_text_may_be_empty_or_in_any_script(synthesiser):
    assert len(synthesiser.speak("")[0]) < 22050
    assert len(synthesiser.speak("你好世界", "cmn")[0]) > 10000


def test_same_seed_same_samples_in_a_fresh_process():
    code = (
        "import hashlib; from moe_asr.data.espeak import Synthesiser; s = Synthesiser(seed={});"
        f"print([hashlib.sha256(s.speak({TEXT!r}, 'de', v)[0].tobytes()).hexdigest() for v in ('f2', 'm3')])"
    )
    runs = [subprocess.check_output([sys.executable, "-c", code.format(seed)]) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_deep_environments(tmp_path):
    import espeakng_loader

    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    (deep / "data").symlink_to(espeakng_loader.get_data_path())
    code = (
        f"import espeakng_loader as e; e.get_data_path = lambda: {str(deep / 'data')!r};"
        "from moe_asr.data.espeak import Synthesiser; assert len(Synthesiser().speak('hello', 'de', 'f2')[0]) > 5000"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_voices_are_named(synthesiser):
    with pytest.raises(UserError, match="no voice 'klingon-7'"):
        synthesiser.speak(TEXT, "klingon-7")
    with pytest.raises(UserError, match="no voice variant 'x9'"):
        synthesiser.speak(TEXT, variant="x9")

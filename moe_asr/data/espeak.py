"""Speech synthesis by espeak-ng, from the library in the `espeakng-loader` wheel.

espeak-ng keeps one state per process: `Synthesiser` objects share it, and are not for several threads at a time.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

import numpy as np

from moe_asr.errors import UserError

_SYNCHRONOUS, _UTF8, _DONT_EXIT = 2, 1, 0x8000
_RATE, _PITCH, _RANGE = 1, 3, 4
_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Synthesiser:
    """Turns text into samples.

    What it says depends on all it said before in this process: the same calls in the same order in a fresh process,
    with the same seed, give the same samples.

    Args:
        seed: Of the noise in breath and fricatives.

    Raises:
        UserError: espeak-ng is not installed or does not start.
    """

    def __init__(self, seed: int = 0):
        try:
            import espeakng_loader
        except ImportError:
            raise UserError("speech synthesis needs espeak-ng: pip install espeakng-loader") from None
        self._data = Path(espeakng_loader.get_data_path())
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        path = os.fsencode(_short_path(self._data))
        self.sample_rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, path, _DONT_EXIT)
        if self.sample_rate <= 0:
            raise UserError(f"espeak-ng does not start with the data in {self._data}; install espeakng-loader again")
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        self._blocks: list[np.ndarray] = []
        # the library keeps a bare pointer to the callback: an attribute keeps it alive as long as this object
        self._callback = _Callback(self._collect)

    def speak(
        self, text: str, voice: str = "en-us", variant: str = "", rate: int = 175, pitch: int = 50, range: int = 50
    ) -> tuple[np.ndarray, int]:
        """Speaks a text.

        Args:
            voice: Language and accent, as `espeak-ng --voices` lists them.
            variant: Timbre, one of `variants()`; empty for the voice's own.
            rate: Words a minute, from 80.
            pitch: 0 to 100.
            range: Of the pitch, 0 (monotone) to 100.

        Returns:
            float32 samples of shape [S] in [-1, 1], and the sample rate in Hz.

        Raises:
            UserError: there is no such voice or variant.
        """
        name = f"{voice}+{variant}" if variant else voice
        if variant and variant not in self.variants():
            raise UserError(f"espeak-ng has no voice variant '{variant}'")
        if self._library.espeak_SetVoiceByName(name.encode()) != 0:
            raise UserError(f"espeak-ng has no voice '{voice}'")
        for parameter, value in ((_RATE, rate), (_PITCH, pitch), (_RANGE, range)):
            self._library.espeak_SetParameter(parameter, int(value), 0)
        self._library.espeak_SetSynthCallback(self._callback)
        self._blocks.clear()
        encoded = text.encode() + b"\0"
        status = self._library.espeak_Synth(encoded, ctypes.c_size_t(len(encoded)), 0, 0, 0, _UTF8, None, None)
        assert status == 0, f"espeak_Synth returned {status}"
        samples = np.concatenate(self._blocks) if self._blocks else np.zeros(0, np.int16)
        return samples.astype(np.float32) / 32768, self.sample_rate

    def variants(self) -> list[str]:
        """Names of the voice variants."""
        return sorted(path.name for path in (self._data / "voices" / "!v").iterdir())

    def _collect(self, samples, count: int, _events) -> int:
        if samples and count > 0:
            # copied, for the library writes the next samples into the same memory
            self._blocks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0


@functools.lru_cache
def _short_path(folder: Path) -> str:
    """Another name of a folder: espeak-ng has room for 160 characters, and environments may lie deep."""
    if not Path("/proc/self/fd").is_dir():
        return str(folder)
    return f"/proc/self/fd/{os.open(folder, os.O_RDONLY)}"  # kept open, because voices are read when first used

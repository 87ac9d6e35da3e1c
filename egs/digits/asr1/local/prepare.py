"""Makes digit strings from the Free Spoken Digit Dataset: real recordings, joined within a speaker, at 16 kHz.

Six speakers are too few to keep speakers apart, so recordings are: takes 0-14 of each digit and speaker make the train
strings, 15-18 the dev strings, 19-24 the test strings. Results are therefore for known speakers and unheard recordings.
"""

from __future__ import annotations

import ast
import hashlib
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from moe_asr.config import run_command
from moe_asr.data.archives import extract
from moe_asr.data.audio import resample
from moe_asr.data.download import download, file_sha256
from moe_asr.data.tables import Row, write_table
from moe_asr.errors import UserError

COMMIT = "26eb9aaf76e81b692f806f9140c2d2777410d7a1"
URL = f"https://github.com/Jakobovski/free-spoken-digit-dataset/archive/{COMMIT}.zip"
# SHA-256 of the names and checksums of the recordings used, at that commit
DIGEST = "186178221af032279b9f3b98316444b9ed5704803d2f12e345c2bcca94dbbe38"
NAME = "free_spoken_digit_dataset"
ACCENTS = {"USA/neutral": "american", "DEU/German": "german", "BEL/French": "french", "GRC/Greek": "greek"}
GENERAL = "american"
DIGITS = "zero one two three four five six seven eight nine".split()
TAKES = {"train": range(15), "dev": range(15, 19), "test": range(19, 25)}
RATE, RECORDED_RATE = 16000, 8000


@dataclass(frozen=True)
class DigitsConfig:
    """Makes digit strings from recorded digits, and writes their tables.

    Args:
        corpus_dir: Folder that holds free_spoken_digit_dataset/; by default the dataset is downloaded.
        download_dir: For the download.
        out_dir: For the audio, and for the tables train_general.tsv, train_accents.tsv, dev_general.tsv,
            dev_accents.tsv and test.tsv.
        seed: Of the strings and the pauses.
        general_train: Strings of the general accent, shared by its speakers.
        accent_train: Strings of each other accent, as for dev and test below.
        dev: Strings of each accent.
        test: Strings of each accent.
    """

    corpus_dir: str = ""
    download_dir: str = "downloads"
    out_dir: str = "data"
    seed: int = 0
    general_train: int = 1200
    accent_train: int = 150
    dev: int = 40
    test: int = 120


def find_corpus(config: DigitsConfig) -> Path:
    """Folder of the dataset, which is downloaded if no place is given.

    Raises:
        UserError: it is not there or not complete; says what to put where.
    """
    advice = f"get {URL}, unpack it as DIR/{NAME} (with recordings/0_george_0.wav inside) and give --corpus_dir DIR"
    if config.corpus_dir:
        folder = Path(config.corpus_dir) / NAME
        if not (folder / "recordings").is_dir():
            raise UserError(f"no folder {folder / 'recordings'}: {advice}")
    else:
        archive = Path(config.download_dir) / f"{NAME}-{COMMIT[:8]}.zip"
        unpacked = archive.with_suffix("")
        folder = unpacked / f"free-spoken-digit-dataset-{COMMIT}"
        if not folder.is_dir():
            try:
                download(URL, archive, sha256=None)  # made anew for each request; the recordings are checked below
            except UserError as error:
                raise UserError(f"{error}; or by hand: {advice}") from None
            extract(archive, unpacked)
    return folder


def read_speakers(folder: Path) -> dict[str, str]:
    """Accent of each speaker, from the dataset's metadata.py, which is read as data and not run."""
    path = folder / "metadata.py"
    try:
        (assignment,) = (node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Assign))
        return {name: ACCENTS[facts["accent"]] for name, facts in ast.literal_eval(assignment.value).items()}
    except (SyntaxError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not the metadata of the Free Spoken Digit Dataset ({error!r})") from None


def check_recordings(folder: Path, speakers: dict[str, str]) -> None:
    """Compares the recordings used with those of the commit named above.

    Raises:
        UserError: some are missing, or they are not the same.
    """
    takes = [take for part in TAKES.values() for take in part]
    paths = [recording(folder, digit, name, take) for digit in range(10) for name in speakers for take in takes]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"{len(missing)} of {len(paths)} recordings are missing, as {missing[0]}: get {URL}")
    content = "".join(f"{path.name} {file_sha256(path)}\n" for path in sorted(paths))
    if hashlib.sha256(content.encode()).hexdigest() != DIGEST:
        raise UserError(f"the recordings in {folder} are damaged or of another version: get {URL}")


def recording(folder: Path, digit: int, speaker: str, take: int) -> Path:
    return folder / "recordings" / f"{digit}_{speaker}_{take}.wav"


def make_strings(folder: Path, speaker: str, accent: str, part: str, count: int, config: DigitsConfig) -> list[Row]:
    """Joins 3 to 6 recordings each; all recordings of the part are used about equally often."""
    generator = random.Random(f"{config.seed} {part} {speaker}")
    noise = np.random.default_rng(generator.getrandbits(32))
    out_dir = Path(config.out_dir).absolute() / "wav" / part / accent
    out_dir.mkdir(parents=True, exist_ok=True)
    deck: list[tuple[int, int]] = []
    rows = []
    for i in range(count):
        pieces, words = [_pause(generator, noise)], []
        for _ in range(generator.randint(3, 6)):
            if not deck:
                deck = [(digit, take) for digit in range(10) for take in TAKES[part]]
                generator.shuffle(deck)
            digit, take = deck.pop()
            samples, rate = soundfile.read(recording(folder, digit, speaker, take), dtype="float32")
            assert rate == RECORDED_RATE, rate  # checked with the content
            pieces += [samples, _pause(generator, noise)]
            words.append(DIGITS[digit])
        name = f"{part}-{accent}-{speaker}-{i:04d}"
        path = out_dir / f"{name}.wav"
        soundfile.write(path, resample(np.concatenate(pieces), RECORDED_RATE, RATE), RATE, subtype="PCM_16")
        rows.append(Row(name, str(path), " ".join(words), speaker=speaker, accent=accent, language="en"))
    return rows


def _pause(generator: random.Random, noise: np.random.Generator) -> np.ndarray:
    """A short pause; of faint noise, for no real pause is digital silence."""
    return noise.normal(0, 1e-3, int(RECORDED_RATE * generator.uniform(0.05, 0.25))).astype(np.float32)


def prepare(config: DigitsConfig) -> None:
    folder = find_corpus(config)
    speakers = read_speakers(folder)
    check_recordings(folder, speakers)

    def strings(part: str, accents: list[str], count: int) -> list[Row]:
        rows = []
        for accent in accents:
            names = sorted(name for name in speakers if speakers[name] == accent)
            for name in names:
                rows += make_strings(folder, name, accent, part, count // len(names), config)
        return rows

    others = [accent for accent in ACCENTS.values() if accent != GENERAL]
    tables = {
        "train_general": strings("train", [GENERAL], config.general_train),
        "train_accents": strings("train", others, config.accent_train),
        "dev_general": strings("dev", [GENERAL], config.dev),
        "dev_accents": strings("dev", others, config.dev),
        "test": strings("test", [GENERAL, *others], config.test),
    }
    for name, rows in tables.items():
        write_table(f"{config.out_dir}/{name}.tsv", rows)
        print(f"{name}: {len(rows)} strings of {len({row.speaker for row in rows})} speakers")


if __name__ == "__main__":
    run_command(DigitsConfig, prepare)

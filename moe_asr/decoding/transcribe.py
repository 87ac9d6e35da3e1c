"""Transcribes recordings: cut by silence, pieces of several of them in one batch, results file by file."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

import numpy as np
from rich.console import Console
from rich.progress import Progress

from moe_asr.data.batches import collate
from moe_asr.data.manifests import Utterance
from moe_asr.data.plan import BatchPlan
from moe_asr.data.recordings import Recording, declared_seconds, find_recordings, read_levels, read_pieces
from moe_asr.data.segments import cut
from moe_asr.decoding.batch_decoder import BatchDecoder, Speed, load_recogniser, signs
from moe_asr.decoding.told import Told, check_told
from moe_asr.decoding.transcribe_config import TranscribeConfig
from moe_asr.decoding.transcripts import Piece, Transcript, output_files, read_formats, save, shown
from moe_asr.device import pick_device
from moe_asr.errors import UserError
from moe_asr.methods.adapt import load_adapted
from moe_asr.methods.routes import RouteOptions
from moe_asr.models.lengths import longest_piece

_AHEAD = 4  # batches of audio that are read before the first of them is computed, so that like durations meet


def transcribe(config: TranscribeConfig) -> None:
    """Runs the whole of it; transcripts of finished files are whole whenever it is stopped.

    Raises:
        UserError: see `find_recordings`, `output_files`, `load_recogniser`, `load_adapted`, `check_told`,
            `longest_piece` and `BatchDecoder`; or, after all others are done, files that could not be read
    """
    formats = read_formats(config.format)
    recordings = find_recordings(config.files)
    if config.out_dir is None and formats == ("srt",) and len(recordings) > 1:
        raise UserError(f"subtitles of {len(recordings)} files need --out_dir")
    outputs = output_files(recordings, config.out_dir, formats) if config.out_dir else {}
    paths = _without_done(list(recordings), outputs, config)
    if not paths:
        return
    device = pick_device(config.device)
    loaded = load_recogniser(config.model)
    adapted = load_adapted(loaded.model, config.adaptation) if config.adaptation else None
    told = check_told(config.language, config.accent, loaded.model, adapted, config.adaptation)
    longest = longest_piece(loaded.model, loaded.config.features, config.max_seconds)
    if longest > config.max_duration:
        raise UserError(f"max_duration {config.max_duration:g} s is shorter than pieces of {longest:g} s")
    options = RouteOptions(told.route)
    find_texts = BatchDecoder(loaded, adapted, config.search, device, options, config.precision, told.prompt)
    if config.out_dir:
        Path(config.out_dir).mkdir(parents=True, exist_ok=True)  # now, not after hours, if that cannot be
    facts = {"model": config.model, "adaptation": config.adaptation, "language": told.language, "accent": told.accent}
    facts = {name: value for name, value in facts.items() if value}
    bar = Progress(
        console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty(), redirect_stdout=False
    )  # fmt: skip
    several = len(recordings) > 1

    def emit(path: Path, transcript: Transcript) -> None:
        if config.out_dir:
            save(transcript, outputs[path])
            return
        text = transcript.write(formats[0], indent=None)
        if formats == ("text",) and several:
            text = "".join(f"{transcript.file}: {line}\n" for line in text.splitlines())
        _apart(bar, lambda: print(text, end="", flush=True))

    speed = Speed()
    with bar:
        task = bar.add_task("transcribe", total=sum(map(declared_seconds, paths)))
        run = _Run(
            config, find_texts, told, longest, facts, emit,
            advance=lambda seconds: bar.advance(task, seconds),
            say=lambda text: _apart(bar, lambda: print(text, file=sys.stderr, flush=True)),
        )  # fmt: skip
        with speed.measured(run.seconds):
            run.transcribe(paths)
    print(run.summary(speed, config.out_dir), file=sys.stderr)
    if run.bad:
        raise UserError(f"{len(run.bad)} of {len(paths)} files could not be read or not to their ends, see above")


@dataclass
class _Job:
    """A file on its way: `spans` are the frames of its pieces, `found` what was said in those that are done."""

    path: Path
    recording: Optional[Recording] = None
    spans: list[tuple[int, int]] = field(default_factory=list)
    found: dict[int, Piece] = field(default_factory=dict)
    read: bool = False
    failed: bool = False

    @property
    def complete(self) -> bool:
        return self.read and (self.failed or len(self.found) == len(self.spans))


class _Run:
    """Reads ahead, computes batches, and gives out the transcripts in the order of the files.

    Args:
        longest: piece in seconds
        facts: of the transcripts
        emit: takes a file and its transcript
        advance: is told seconds of audio that are done
        say: takes a line for the user
    """

    def __init__(
        self,
        config: TranscribeConfig,
        find_texts: BatchDecoder,
        told: Told,
        longest: float,
        facts: dict,
        emit: Callable[[Path, Transcript], None],
        advance: Callable[[float], None],
        say: Callable[[str], None],
    ) -> None:
        self._config, self._find_texts, self._told = config, find_texts, told
        self._longest, self._facts = longest, facts
        self._emit, self._advance, self._say = emit, advance, say
        self._rate = find_texts.loaded.config.features.sample_rate
        self._pending: deque[_Job] = deque()
        self._window: list[tuple[_Job, int, np.ndarray]] = []
        self._waiting = 0.0  # seconds in the window
        self.bad: set[Path] = set()
        self.seconds: list[float] = []
        self._counts = {"pieces": 0, "truncated": 0, "looping": 0}

    def transcribe(self, paths: Sequence[Path]) -> None:
        """All files, one after the other."""
        for path in paths:
            job = _Job(path)
            self._pending.append(job)
            for index, samples_S in enumerate(self._read(job)):
                self._window.append((job, index, samples_S))
                self._waiting += len(samples_S) / self._rate
                if self._waiting >= _AHEAD * self._config.max_duration:
                    self._compute()
            job.read = True
            self._give_out()
        self._compute()

    def summary(self, speed: Speed, out_dir: Optional[str]) -> str:
        """What was done, on one line."""
        where = f"{out_dir}: " if out_dir else ""
        n, pieces = len(self.seconds), self._counts["pieces"]
        line = f"{where}{n:,} file{'s' * (n != 1)}, {pieces:,} piece{'s' * (pieces != 1)}, "
        line += f"{sum(self.seconds) / 60:.1f} minutes, {speed}"
        for sign, words in (("truncated", "cut off at the limit of tokens"), ("looping", "go round in circles")):
            line += f", {self._counts[sign]:,} {words}" if self._counts[sign] else ""
        return line

    def _read(self, job: _Job) -> Iterator[np.ndarray]:
        """Samples of the pieces of a file, as far as it can be read."""
        try:
            job.recording = recording = read_levels(job.path)
            job.spans = cut(recording.levels_T, self._longest, self._config.segments)
            if recording.problem:
                self._complain(job, f"{job.path}: {recording.problem}; what there is of it is transcribed")
            spoken = sum(recording.time(end) - recording.time(start) for start, end in job.spans)
            self._advance(recording.seconds - spoken)
            yield from read_pieces(recording, job.spans, self._rate)
        except UserError as error:
            job.failed = True
            self._complain(job, str(error))

    def _complain(self, job: _Job, why: str) -> None:
        self.bad.add(job.path)
        self._say(f"error: {why}")

    def _compute(self) -> None:
        window, self._window, self._waiting = self._window, [], 0.0
        if window:
            seconds = [len(samples_S) / self._rate for *_, samples_S in window]
            for batch in BatchPlan(seconds, self._config.max_duration, shuffle=False).epoch(0):
                self._find([window[i] for i in batch])
        self._give_out()

    def _find(self, items: Sequence[tuple[_Job, int, np.ndarray]]) -> None:
        loaded, adapted = self._find_texts.loaded, self._find_texts.adapted
        utterances = [self._utterance(job, index) for job, index, _ in items]
        batch = collate(
            utterances,
            [samples_S for *_, samples_S in items],
            None,
            adapted.config.domains if adapted else (),
            adapted.config.domain_key if adapted else "accent",
        )
        for (job, index, _), utterance, text in zip(
            items, utterances, self._find_texts(batch, [u.seconds for u in utterances])
        ):
            found = signs(text)
            self._counts["pieces"] += 1
            for sign in found:
                self._counts[sign] += 1
            facts = {}
            if text.language:
                facts = {"detected": text.language, "probability": round(text.language_probability, 3)}
            end = utterance.start + utterance.seconds
            job.found[index] = Piece(utterance.start, end, loaded.tokens.decode(text.tokens), {**facts, **found})
            self._advance(utterance.seconds)

    def _utterance(self, job: _Job, index: int) -> Utterance:
        recording, (first, last) = job.recording, job.spans[index]
        start = recording.time(first)
        return Utterance(
            f"{job.path}-{index}", str(job.path), recording.num_samples, recording.sample_rate, "",
            language=self._told.language, accent=self._told.accent, start=start, duration=recording.time(last) - start,
        )  # fmt: skip

    def _give_out(self) -> None:
        while self._pending and self._pending[0].complete:
            job = self._pending.popleft()
            if not job.failed:
                recording = job.recording
                self.seconds.append(recording.seconds)
                pieces = [job.found[index] for index in range(len(job.spans))]
                transcript = Transcript(shown(job.path), recording.seconds, pieces, self._facts, recording.problem)
                self._emit(job.path, transcript)


def _without_done(paths: list[Path], outputs: dict[Path, dict[str, Path]], config: TranscribeConfig) -> list[Path]:
    """The recordings whose transcripts are still to be made; `outputs` keeps only what is to be written."""
    if config.overwrite or not outputs:
        return paths
    for files in outputs.values():
        for format in [format for format, path in files.items() if path.exists()]:
            del files[format]
    left = [path for path in paths if outputs[path]]
    if done := len(paths) - len(left):
        which = "all transcripts are" if not left else f"transcripts of {done:,} of {len(paths):,} files are"
        print(f"{config.out_dir}: {which} there already; --overwrite true makes them anew", file=sys.stderr)
    return left


def _apart(bar: Progress, say: Callable[[], None]) -> None:
    """Lets something be printed without the bar in it."""
    bar.stop()
    say()
    bar.start()

"""Everything there is to say about one decode, and the files it is written to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

from moe_asr.files import atomic_write
from moe_asr.scoring.align import Counts
from moe_asr.scoring.classification import Classification
from moe_asr.scoring.hallucination import Hallucination, find_hallucination
from moe_asr.scoring.hypotheses import Hypothesis
from moe_asr.scoring.identification import identification
from moe_asr.scoring.scored import Attribute, Scored, by_unit, group_by, pool, score
from moe_asr.scoring.significance import Bootstrap, Comparison, compare, compare_means, interval, match, mean_interval
from moe_asr.scoring.transcripts import write_errs, write_recogs
from moe_asr.scoring.writing import MetricChoice


@dataclass(frozen=True)
class Summary:
    """One set of utterances in numbers.

    Args:
        utterances: how many
        wrong: how many of them with at least one error
        seconds: of audio
        counts: pooled error counts
        interval: 95 % interval of the rate, as fractions; None where there is too little to resample
        unit: wer, cer or mer; mixed where its utterances are not counted in one unit
    """

    utterances: int
    wrong: int
    seconds: float
    counts: Counts
    interval: tuple[float, float] | None
    unit: str = "wer"

    def to_dict(self) -> dict:
        """Flat, for JSON."""
        rest = {"utterances": self.utterances, "wrong": self.wrong, "seconds": round(self.seconds, 3)}
        return {**self.counts.to_dict(), "interval": self.interval, **rest, "unit": self.unit}


@dataclass(frozen=True)
class Report:
    """A scored decode.

    Args:
        set_name: name of the test set
        metric: wer, cer or mer, or auto: by the language of each utterance
        normaliser: name of the text normaliser both sides went through
        overall: all utterances
        units: those of each unit, where they are counted in several; then the rate of all together means nothing
        raw: all utterances, without normalisation; None where the normaliser is "none"
        groups: for each attribute that the utterances have, each of its values
        means: for each attribute the mean of its groups' rates, every group weighing the same
        mean_intervals: of the mean over languages and over accents
        identification: how well languages were told, where they were
        hallucination: signs of it
        comparison: against another decode, where asked for; that one is `first`, this one `second`; for metric auto of
            the means over languages
    """

    set_name: str
    metric: MetricChoice
    normaliser: str
    overall: Summary
    units: dict[str, Summary]
    raw: Summary | None
    groups: dict[str, dict[str, Summary]]
    means: dict[str, float | None]
    mean_intervals: dict[str, tuple[float, float] | None]
    identification: Classification | None
    hallucination: Hallucination
    comparison: Comparison | None

    def to_dict(self) -> dict:
        """For JSON; rates are fractions, not per cent."""
        return {
            "set": self.set_name,
            "metric": self.metric,
            "normaliser": self.normaliser,
            "overall": None if self.units else self.overall.to_dict(),
            "units": {unit: summary.to_dict() for unit, summary in self.units.items()},
            "raw": None if self.units or self.raw is None else self.raw.to_dict(),
            "groups": {a: {name: s.to_dict() for name, s in groups.items()} for a, groups in self.groups.items()},
            "group_means": self.means,
            "group_mean_intervals": self.mean_intervals,
            "identification": self.identification and _identification(self.identification),
            "hallucination": asdict(self.hallucination),
            "comparison": self.comparison and asdict(self.comparison),
        }


def make_report(
    set_name: str,
    hypotheses: Sequence[Hypothesis],
    metric: MetricChoice,
    normaliser: str,
    bootstrap: Bootstrap,
    compared_with: Sequence[Hypothesis] | None = None,
) -> tuple[Report, dict[str, list[Scored]]]:
    """Scores a decode. Returns the report and the scored utterances by kind of text, "normalised" and "raw"."""
    texts = {"raw": score(hypotheses, metric)}
    if normaliser != "none":
        texts["normalised"] = score(hypotheses, metric, normaliser)
    scored = texts.get("normalised", texts["raw"])
    comparison = None
    if compared_with is not None:
        comparison = _compare(score(compared_with, metric, normaliser), scored, metric, bootstrap)
    members = {attribute: group_by(scored, attribute) for attribute in get_args(Attribute)}
    members = {attribute: groups for attribute, groups in members.items() if groups}
    groups = {
        attribute: {name: summarise(one, bootstrap) for name, one in found.items()}
        for attribute, found in members.items()
    }
    units = by_unit(scored)
    report = Report(
        set_name=set_name,
        metric=metric,
        normaliser=normaliser,
        overall=summarise(scored, bootstrap),
        units={unit: summarise(one, bootstrap) for unit, one in units.items()} if len(units) > 1 else {},
        raw=summarise(texts["raw"], bootstrap) if normaliser != "none" else None,
        groups=groups,
        means={attribute: mean_rate(list(found.values())) for attribute, found in groups.items()},
        mean_intervals={
            attribute: mean_interval(list(found.values()), bootstrap)
            for attribute, found in members.items()
            if attribute != "speaker" and len(found) > 1  # which speakers there are was chance
        },
        identification=identification(hypotheses, bootstrap.replications),
        hallucination=find_hallucination(scored),
        comparison=comparison,
    )
    return report, texts


def summarise(scored: Sequence[Scored], bootstrap: Bootstrap) -> Summary:
    """Numbers of a set of utterances."""
    return Summary(
        utterances=len(scored),
        wrong=sum(one.counts.errors > 0 for one in scored),
        seconds=sum(one.hypothesis.duration for one in scored),
        counts=pool(scored),
        interval=interval(scored, bootstrap),
        unit=next(iter(units)) if len(units := by_unit(scored)) == 1 else "mixed",
    )


def _compare(
    first: Sequence[Scored], second: Sequence[Scored], metric: MetricChoice, bootstrap: Bootstrap
) -> Comparison:
    if metric != "auto":
        return compare(first, second, bootstrap)
    groups = [group_by(scored, "language") for scored in (first, match(first, second))]
    return compare_means(*(list(found.values()) for found in groups), bootstrap)


def _identification(found: Classification) -> dict:
    each = {name: asdict(one) | {"rate": one.rate} for name, one in found.each.items()}
    return asdict(found.overall) | {"rate": found.overall.rate, "mean": found.mean, "languages": each}


def mean_rate(summaries: Sequence[Summary]) -> float | None:
    """Mean over those which have a rate; None if none has."""
    rates = [summary.counts.rate for summary in summaries if summary.counts.rate is not None]
    return sum(rates) / len(rates) if rates else None


def write_report(decode_dir: str | Path, report: Report, texts: dict[str, list[Scored]], origin: dict) -> list[str]:
    """Writes `recogs-`, `errs-` and `wer-summary-<set>.txt` and `scores.json`. Returns their names.

    Where a normaliser was used, the files without a suffix hold the normalised text, and `-raw` ones the raw text.

    Args:
        decode_dir: folder to write to
        report: what `make_report` returned
        texts: and its second part
        origin: settings, command, git hash, versions and date, for `scores.json`
    """
    folder, written = Path(decode_dir), []
    rates = {"raw": report.raw or report.overall, "normalised": report.overall}
    with atomic_write(folder / f"wer-summary-{report.set_name}.txt") as summary:
        summary.write(f"settings\t{report.metric.upper()}\n")
        for kind, scored in texts.items():
            suffix = "-raw" if kind == "raw" and len(texts) > 1 else ""
            with atomic_write(folder / f"recogs-{report.set_name}{suffix}.txt") as file:
                write_recogs(file, scored)
            with atomic_write(folder / f"errs-{report.set_name}{suffix}.txt") as file:
                write_errs(file, scored)
            settings = "text=raw" if kind == "raw" else f"text={report.normaliser}"
            pooled = {f"unit={unit}": pool(one) for unit, one in by_unit(scored).items()} if report.units else {}
            for which, counts in (pooled or {"": rates[kind].counts}).items():
                rate = "n/a" if counts.rate is None else f"{100 * counts.rate:.2f}"
                summary.write(f"{settings}{f' {which}' if which else ''}\t{rate}\n")
            written += [f"recogs-{report.set_name}{suffix}.txt", f"errs-{report.set_name}{suffix}.txt"]
    with atomic_write(folder / "scores.json") as file:
        json.dump({**report.to_dict(), **origin}, file, indent=1, ensure_ascii=False, allow_nan=False)
        file.write("\n")
    return [*sorted(written), f"wer-summary-{report.set_name}.txt", "scores.json"]

"""Everything there is to say about one decode, and the files it is written to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

from moe_asr.files import atomic_write
from moe_asr.scoring.align import Counts, Metric
from moe_asr.scoring.hallucination import Hallucination, find_hallucination
from moe_asr.scoring.hypotheses import Hypothesis
from moe_asr.scoring.scored import Attribute, Scored, group_by, pool, score
from moe_asr.scoring.significance import Bootstrap, Comparison, compare, interval
from moe_asr.scoring.transcripts import write_errs, write_recogs


@dataclass(frozen=True)
class Summary:
    """One set of utterances in numbers.

    Args:
        utterances: how many
        wrong: how many of them with at least one error
        seconds: of audio
        counts: pooled error counts
        interval: 95 % interval of the rate, as fractions; None where there is too little to resample
    """

    utterances: int
    wrong: int
    seconds: float
    counts: Counts
    interval: tuple[float, float] | None

    def to_dict(self) -> dict:
        """Flat, for JSON."""
        rest = {"utterances": self.utterances, "wrong": self.wrong, "seconds": round(self.seconds, 3)}
        return {**self.counts.to_dict(), "interval": self.interval, **rest}


@dataclass(frozen=True)
class Report:
    """A scored decode.

    Args:
        set_name: name of the test set
        metric: wer, cer or mer
        normaliser: name of the text normaliser both sides went through
        overall: all utterances
        raw: all utterances, without normalisation; None where the normaliser is "none"
        groups: for each attribute that the utterances have, each of its values
        means: for each attribute the mean of its groups' rates, every group weighing the same
        hallucination: signs of it
        comparison: against another decode, where asked for; that one is `first`, this one `second`
    """

    set_name: str
    metric: Metric
    normaliser: str
    overall: Summary
    raw: Summary | None
    groups: dict[str, dict[str, Summary]]
    means: dict[str, float | None]
    hallucination: Hallucination
    comparison: Comparison | None

    def to_dict(self) -> dict:
        """For JSON; rates are fractions, not per cent."""
        return {
            "set": self.set_name,
            "metric": self.metric,
            "normaliser": self.normaliser,
            "overall": self.overall.to_dict(),
            "raw": self.raw and self.raw.to_dict(),
            "groups": {a: {name: s.to_dict() for name, s in groups.items()} for a, groups in self.groups.items()},
            "group_means": self.means,
            "hallucination": asdict(self.hallucination),
            "comparison": self.comparison and asdict(self.comparison),
        }


def make_report(
    set_name: str,
    hypotheses: Sequence[Hypothesis],
    metric: Metric,
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
        comparison = compare(score(compared_with, metric, normaliser), scored, bootstrap)
    groups = {
        attribute: {name: summarise(members, bootstrap) for name, members in group_by(scored, attribute).items()}
        for attribute in get_args(Attribute)
    }
    groups = {attribute: members for attribute, members in groups.items() if members}
    report = Report(
        set_name=set_name,
        metric=metric,
        normaliser=normaliser,
        overall=summarise(scored, bootstrap),
        raw=summarise(texts["raw"], bootstrap) if normaliser != "none" else None,
        groups=groups,
        means={attribute: mean_rate(list(members.values())) for attribute, members in groups.items()},
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
    )


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
                write_errs(file, scored, report.metric)
            settings = "text=raw" if kind == "raw" else f"text={report.normaliser}"
            rate = rates[kind].counts.rate
            summary.write(f"{settings}\t{'n/a' if rate is None else f'{100 * rate:.2f}'}\n")
            written += [f"recogs-{report.set_name}{suffix}.txt", f"errs-{report.set_name}{suffix}.txt"]
    with atomic_write(folder / "scores.json") as file:
        json.dump({**report.to_dict(), **origin}, file, indent=1, ensure_ascii=False, allow_nan=False)
        file.write("\n")
    return [*sorted(written), f"wer-summary-{report.set_name}.txt", "scores.json"]

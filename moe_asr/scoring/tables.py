"""Tables for the terminal and for Markdown files."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:  # a report has tables of its own
    from moe_asr.scoring.report import Report, Summary

WIDTH = 240  # where the output goes to a file, which has no width of its own; tables take only what they need
_FOLLOWS = "  "
_UNITS = {"wer": "words", "cer": "characters"}


def percent(rate: float | None) -> str:
    """A fraction as per cent with two digits; "n/a" where there is none."""
    return "n/a" if rate is None else f"{100 * rate:.2f}"


def percent_interval(interval: tuple[float, float] | None) -> str:
    """`[11.02, 13.70]`, in per cent; empty where there is none."""
    return "" if interval is None else f"[{100 * interval[0]:.2f}, {100 * interval[1]:.2f}]"


def p_text(p_value: float) -> str:
    """`p = 0.012`, or `p < 0.001` where three digits would say zero."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def console() -> Console:
    """Writes to stdout: in colours and as wide as the terminal, or plainly and `WIDTH` columns wide into a file."""
    return Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)


def plain_table(header: Sequence[str]) -> Table:
    """A table without vertical lines: first column to the left, the others, numbers, to the right.

    Where it is too wide, the first column is folded: a number that is cut off is wrong.
    """
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, collapse_padding=True)
    for k, name in enumerate(header):
        table.add_column(name, justify="right" if k else "left", no_wrap=k > 0)
    return table


def print_report(report: Report, against: str | None = None, worst_speakers: int = 5) -> None:
    """The report on the terminal.

    Args:
        report: what to print
        against: name of the decode in `report.comparison`
        worst_speakers: how many speakers to show, those with the highest rates
    """
    out, metric = console(), report.metric.upper()
    text = "raw text" if report.normaliser == "none" else f"text normalised as '{report.normaliser}'"
    hours = f", {report.overall.seconds / 3600:.2f} h" if report.overall.seconds else ""
    out.print(Text(f"{report.set_name}: {metric} of {text}, {report.overall.utterances:,} utterances{hours}", "bold"))

    auto = report.metric == "auto"
    rate = "error %" if auto else f"{metric} %"
    table = plain_table(["", "utts", *(["unit"] if auto else []), "tokens", "sub", "del", "ins", rate, "95 % interval"])
    for name, summary in (report.units or {"all": report.overall}).items():
        table.add_row(f"all in {_UNITS[name]}" if report.units else name, *_cells(summary, auto), style="bold")
    for attribute, groups in report.groups.items():
        if len(groups) == 1:  # the same numbers as above
            continue
        names = list(groups)
        if attribute == "speaker" and len(names) > worst_speakers:
            names = sorted(names, key=lambda name: -(groups[name].counts.rate or 0))[:worst_speakers]
        title = attribute if len(names) == len(groups) else f"{attribute}, worst {len(names)} of {len(groups)}"
        table.add_section()
        table.add_row(Text(title, "italic"))
        for name in names:
            table.add_row(Text(_FOLLOWS + name), *_cells(groups[name], auto))
        mean = [percent(report.means[attribute]), percent_interval(report.mean_intervals.get(attribute))]
        table.add_row(f"{_FOLLOWS}mean of {len(groups)}", *[""] * (6 if auto else 5), *mean)
    out.print(table)
    for line in _remarks(report, against):
        out.print(Text(line))


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table that reads well as plain text too; all but the first `left` columns are set to the right."""
    table = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in [header, *rows]]
    widths = [max(3, *(cell_len(row[k]) for row in table)) for k in range(len(header))]
    rule = ["-" * width if k < left else "-" * (width - 1) + ":" for k, width in enumerate(widths)]
    lines = []
    for row in [table[0], rule, *table[1:]]:
        spaces = [" " * (width - cell_len(cell)) for cell, width in zip(row, widths)]
        cells = [cell + space if k < left else space + cell for k, (cell, space) in enumerate(zip(row, spaces))]
        lines.append(f"| {' | '.join(cells)} |\n")
    return "".join(lines)


def _cells(summary: Summary, with_unit: bool) -> list[str]:
    counts = summary.counts
    utterances, *numbers = [f"{number:,}" for number in (summary.utterances, counts.n, counts.s, counts.d, counts.i)]
    unit = [summary.unit.upper()] if with_unit else []
    return [utterances, *unit, *numbers, percent(counts.rate), percent_interval(summary.interval)]


def _remarks(report: Report, against: str | None) -> list[str]:
    overall, found, metric = report.overall, report.hallucination, report.metric.upper()
    lines = [f"utterances with an error: {percent(overall.wrong / overall.utterances)} %"]
    if report.identification is not None:
        told = report.identification.overall
        share = f"{percent(told.rate)} % {percent_interval(told.interval)} of {told.utterances:,} utterances"
        lines.append(f"language identified: {share}; mean over languages {percent(report.identification.mean)} %")
    if report.raw is not None and not report.units:
        lines.append(f"raw text: {metric} {percent(report.raw.counts.rate)} % {percent_interval(report.raw.interval)}")
    lines.append(
        f"hallucination: {percent(found.insertion_rate)} % insertions, {len(found.looping)} utterances with loops, "
        f"{len(found.much_longer)} much longer than the reference; {len(found.empty)} came out empty"
    )
    if report.comparison is not None:
        c = report.comparison
        what = ", mean over languages" if report.metric == "auto" else ""
        lines.append(
            f"against {against}{what}: {percent(c.first)} -> {percent(c.second)} %, "
            f"difference {100 * c.difference:+.2f} {percent_interval(c.interval)}"
        )
        lines.append(f"  better with probability {c.p_improvement:.3f}; two-sided {p_text(c.p_value)}")
    return lines

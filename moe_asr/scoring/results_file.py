"""RESULTS.md of a recipe: a generated part between two marks, and whatever people write around it, which is kept."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from moe_asr.errors import UserError
from moe_asr.files import atomic_write
from moe_asr.scoring.align import Metric
from moe_asr.scoring.report import Summary
from moe_asr.scoring.results import ALL, POOLED, Decode, Results, Row
from moe_asr.scoring.significance import Bootstrap
from moe_asr.scoring.tables import markdown_table, p_text, percent

START = "<!-- results: generated, changes here are lost; text before and after the two marks is kept -->"
END = "<!-- /results -->"
_NAMES = {"wer": "Word", "cer": "Character", "mer": "Mixed"}
_TOKENS = {"wer": "words", "cer": "characters", "mer": "tokens"}
_MEASURED = {"MB": "megabytes", "ms / utterance": "milliseconds"}  # column: field of a row
_LINE = 110


def update_results(path: str | Path, title: str, generated: str) -> None:
    """Replaces the generated part of `path`, or makes the file, or adds the part at the end of a file without one.

    Raises:
        UserError: the marks are not a pair, so it cannot be told what was generated.
    """
    path = Path(path)
    block = f"{START}\n\n{generated.strip()}\n\n{END}"
    if not path.exists():
        text = f"# {title}\n\n{block}\n\n## Notes\n"
    else:
        old = _read(path)
        before, start, rest = old.partition(START)
        _, end, after = rest.partition(END)
        if not start and END not in old:
            text = f"{old.rstrip()}\n\n{block}\n"
        elif not start or not end or START in after or END in before + after:
            raise UserError(
                f"{path}: the marks '{START}' and '{END}' must be there once each, in this order; mend them"
            )
        else:
            text = before + block + after
    with atomic_write(path) as file:
        file.write(text)


def render(results: Results, recipe_dir: str | Path, metric: Metric, normaliser: str, bootstrap: Bootstrap) -> str:
    """The generated part: rates, counts, and how every row was made. No path of this machine gets into it."""
    parts = [_introduction(results, metric, normaliser, bootstrap), _rates(results)]
    if results.speakers:
        parts += ["### By speaker", f"{metric.upper()} in %; N reference tokens.", _by_speaker(results)]
    parts += ["### Counts", "N reference tokens, S substitutions, D deletions, I insertions.", _counts(results, metric)]
    parts += ["### How each row was made", *origins(results.rows, recipe_dir)]
    return "\n\n".join(part.strip() for part in parts)


def rate_cells(results: Results, row: int, with_interval: bool = True) -> list[str]:
    """The cells of one system in the table of rates, after its name."""
    system, p_value = results.rows[row], results.p_values[row]
    cells = [_rate(cell, with_interval) for cell in results.cells[row]]
    if results.by == "speaker":
        cells.append(_change(results, row))
    # what the base was trained on is no part of its adaptation to speakers
    untrained = results.by == "speaker" and system.active_experts is None
    cells += [
        "-" if p_value is None else p_text(p_value).removeprefix("p = ").removeprefix("p "),
        *(("-", "-") if untrained else (f"{system.parameters:,}", f"{system.trainable:.2f}")),
        decimal(system.active_experts, 2),
    ]
    measured = {name: decimal(getattr(system, field), 1) for name, field in _MEASURED.items()}
    return cells + [measured[name] for name in _measured(results)]


def rate_header(results: Results) -> list[str]:
    """Column names of the table of rates; what no decode has measured is left out."""
    change = ["change %"] if results.by == "speaker" else []
    return ["system", *results.columns, *change, "p", "trainable", "trainable %", "active experts", *_measured(results)]


def portable(command: str, recipe_dir: Path) -> str:
    """A command for the reader: paths relative to the recipe, folded before its options where it is long.

    Of an absolute path outside the recipe's repository only the last name is left, `.../name`.
    """
    root = next((p for p in (recipe_dir, *recipe_dir.parents) if (p / ".git").exists()), recipe_dir)

    def shorten(word: str) -> str:
        name, equals, path = word.rpartition("=")
        if not os.path.isabs(path):
            return word
        for place in (path, os.path.realpath(path)):
            if Path(place).is_relative_to(root):
                return name + equals + os.path.relpath(place, recipe_dir)
        return f"{name}{equals}.../{Path(path).name}"

    words = [shlex.quote(shorten(word)) for word in shlex.split(command)]
    if len(" ".join(words)) <= _LINE:
        return " ".join(words)
    return " ".join(f"\\\n  {word}" if word.startswith("--") else word for word in words)


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8, so its text cannot be kept: convert it") from None


def _introduction(results: Results, metric: Metric, normaliser: str, bootstrap: Bootstrap) -> str:
    first = results.rows[0]
    tokens = sum(x.counts.n for x in first.scored)
    text = "raw text" if normaliser == "none" else f"text normalised as `{normaliser}`"
    sentences = [
        f"{_NAMES[metric]} error rate in %, {text}; {len(first.scored):,} utterances, {tokens:,} {_TOKENS[metric]}.",
        f"In brackets the 95 % interval, {bootstrap.replications:,} bootstrap replications over {bootstrap.unit}s.",
    ]
    if results.general is not None:
        left_out = f", left out of '{POOLED}'" if POOLED in results.columns else ""
        sentences.append(f"'{results.general}' is the general domain{left_out}.")
    if len(results.rows) > 1:
        where = "all utterances" if results.compared_on == ALL else f"'{results.compared_on}'"
        sentences.append(f"p: two-sided, paired, against {first.name} on {where}, not corrected for several rows.")
    if results.by == "speaker":
        sentences.append(f"change: of the rate, relative to {first.name}.")
    sentences.append("trainable: parameters, and in % of those that full fine-tuning trains.")
    if any(row.active_experts is not None for row in results.rows):
        sentences.append("active experts: of a layer, mean over layers and frames.")
    if any(row.megabytes is not None for row in results.rows):
        sentences.append("MB: the model's files and the adaptation to one domain.")
    return " ".join(sentences)


def _measured(results: Results) -> list[str]:
    return [name for name, field in _MEASURED.items() if any(getattr(row, field) is not None for row in results.rows)]


def _change(results: Results, row: int) -> str:
    first, own = (results.cells[k][0].counts.rate for k in (0, row))
    return "-" if row == 0 or not first or own is None else f"{100 * (own - first) / first:+.1f}"


def decimal(value: float | None, digits: int) -> str:
    """With so many digits behind the point, or - for None."""
    return "-" if value is None else f"{value:.{digits}f}"


def _by_speaker(results: Results) -> str:
    rows = []
    for name, summaries in results.speakers.items():
        rows.append([name, f"{summaries[0].utterances:,}", f"{summaries[0].counts.n:,}"])
        rows[-1] += [_rate(summary, with_interval=False) for summary in summaries]
    return markdown_table(["speaker", "utterances", "N", *(row.name for row in results.rows)], rows)


def _rates(results: Results) -> str:
    rows = [[row.name, *rate_cells(results, k)] for k, row in enumerate(results.rows)]
    return markdown_table(rate_header(results), rows)


def _rate(summary: Summary, with_interval: bool) -> str:
    return rate_text(summary.counts.rate, summary.interval if with_interval else None)


def rate_text(rate: float | None, interval: tuple[float, float] | None) -> str:
    """`12.3 [11.0, 13.7]` in per cent, or n/a."""
    if rate is None:
        return "n/a"
    text = f"{100 * rate:.1f}"
    return text if interval is None else f"{text} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def _counts(results: Results, metric: Metric) -> str:
    rows = []
    for row, cells in zip(results.rows, results.cells):
        for column, cell in zip(results.columns, cells):
            c = cell.counts
            rows.append([row.name, column, *(f"{v:,}" for v in (cell.utterances, c.n, c.s, c.d, c.i)), percent(c.rate)])
    return markdown_table(["system", "on", "utterances", "N", "S", "D", "I", f"{metric.upper()} %"], rows, left=2)


def origins(rows: Sequence[Row], recipe_dir: str | Path) -> list[str]:
    """One paragraph and one code block a decode; versions once for all where they agree."""
    decodes = [(row.name, decode) for row in rows for decode in row.decodes]
    same = all(decode.versions == decodes[0][1].versions for _, decode in decodes)
    parts = [f"Versions: {_versions(decodes[0][1])}."] if same else []
    for name, decode in decodes:
        facts = [f"git `{decode.git}`", decode.date[:10]]
        facts += [] if decode.seconds is None else [f"{decode.seconds:.1f} s"]
        facts += [] if same else [_versions(decode)]
        parts.append(
            f"**{name}**: {', '.join(facts)}\n\n```\n{portable(decode.command, Path(recipe_dir).resolve())}\n```"
        )
    return parts


def _versions(decode: Decode) -> str:
    return ", ".join(f"{name} {version}" for name, version in decode.versions.items()) or "unknown"

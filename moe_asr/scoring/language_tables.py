"""The generated part of RESULTS.md for systems on several languages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from moe_asr.scoring.language_results import DETECTED, TOLD, LanguageResults, LanguageRow, relative
from moe_asr.scoring.results import Row
from moe_asr.scoring.results_file import decimal, origins, rate_text
from moe_asr.scoring.significance import Bootstrap, Comparison
from moe_asr.scoring.tables import markdown_table, p_text

_UNITS = {"wer": "words", "cer": "characters", "mer": "tokens"}
_HOW = {
    "auto": "Errors in words (WER), or in characters (CER) for languages written without spaces",
    "wer": "Word error rate",
    "cer": "Character error rate",
    "mer": "Mixed error rate",
}


def render_languages(results: LanguageResults, recipe_dir: str | Path, normaliser: str, bootstrap: Bootstrap) -> str:
    """Means over languages, each language, pooled rates, counts, and how every row was made."""
    parts = [_introduction(results, normaliser, bootstrap), markdown_table(mean_header(), mean_cells(results))]
    parts += ["### By language", _languages(results), "### Pooled, and in characters", _pooled(results)]
    if any(row.identified for row in results.rows):
        parts += ["### Languages identified, %", _identified(results)]
    parts += ["### Counts", "N reference tokens, S substitutions, D deletions, I insertions.", _counts(results)]
    parts += ["### How each row was made", *origins([_named(row) for row in results.rows], recipe_dir)]
    return "\n\n".join(part.strip() for part in parts)


def mean_header() -> list[str]:
    """Column names of the first table."""
    each = [column for condition in (TOLD, DETECTED) for column in (condition, "change %", "p")]
    return ["system", *each, "identified %", "trainable", "trainable %", "adapter MB", "ms / utterance"]


def mean_cells(results: LanguageResults, with_interval: bool = True) -> list[list[str]]:
    """A row for each system: means under both conditions, and what it costs."""
    table = []
    for name in results.names:
        told, detected = results.find(name, TOLD), results.find(name, DETECTED)
        cells = [cell for row in (told, detected) for cell in _mean(row, with_interval)]
        cells.append("-" if detected is None else _share(detected))
        row = (told or detected).row
        cells += [f"{row.parameters:,}", f"{row.trainable:.2f}", decimal(row.adaptation_megabytes, 1)]
        table.append([name, *cells, decimal(row.milliseconds, 1)])
    return table


def _mean(row: LanguageRow | None, with_interval: bool) -> list[str]:
    if row is None:
        return ["-"] * 3
    return [rate_text(row.mean, row.mean_interval if with_interval else None), *_compared(row.against)]


def _compared(found: Comparison | None) -> list[str]:
    """Relative change and p."""
    if found is None:
        return ["-", "-"]
    change = relative(found)
    p = p_text(found.p_value).removeprefix("p = ").removeprefix("p ")
    return ["-" if change is None else f"{100 * change:+.1f}", p]


def _share(row: LanguageRow) -> str:
    return "-" if row.identified is None else f"{100 * row.identified.overall.rate:.1f}"


def _introduction(results: LanguageResults, normaliser: str, bootstrap: Bootstrap) -> str:
    first = results.rows[0]
    text = "raw text" if normaliser == "none" else f"text normalised as `{normaliser}`"
    if normaliser == "multilingual" and results.metric == "auto":
        text += " (Mandarin as `mandarin`)"
    sentences = [
        f"{_HOW[results.metric]}, in %, {text}; mean over {len(first.languages)} languages, each weighing the same.",
        f"{len(first.row.scored):,} utterances.",
        "language-aware: the model was told the language of each utterance; language-agnostic: it was not.",
        f"In brackets the 95 % interval, {bootstrap.replications:,} replications over {bootstrap.unit}s within"
        " each language.",
        f"change: of the mean, relative to {results.reference} under the same condition; p: two-sided, paired, against"
        " it, not corrected for several rows.",
        "identified: share of utterances whose language was detected rightly.",
        "trainable: parameters, and in % of those that full fine-tuning trains.",
        "adapter MB: files of the adaptation; ms: to decode an utterance, where it was told the language.",
    ]
    return " ".join(sentences)


def _languages(results: LanguageResults) -> str:
    first = results.rows[0].languages
    header = ["system", "", *(f"{name}, {one.unit.upper()}" for name, one in first.items())]
    rows = [
        [row.name, row.condition, *(rate_text(one.counts.rate, one.interval) for one in row.languages.values())]
        for row in results.rows
    ]
    return markdown_table(header, rows, left=2)


def _pooled(results: LanguageResults) -> str:
    units = list(results.rows[0].pooled)
    header = ["system", "", *(f"pooled {unit.upper()}" for unit in units), "mean CER of all languages", "change %", "p"]
    rows = [
        [
            *(row.name, row.condition),
            *(rate_text(row.pooled[unit].counts.rate, row.pooled[unit].interval) for unit in units),
            rate_text(row.characters, row.characters_interval),
            *_compared(row.characters_against),
        ]
        for row in results.rows
    ]
    return markdown_table(header, rows, left=2)


def _identified(results: LanguageResults) -> str:
    names = list(results.rows[0].languages)
    rows = []
    for row in (row for row in results.rows if row.identified):
        each = [row.identified.each.get(name) for name in names]
        cells = ["n/a" if one is None else rate_text(one.rate, None) for one in each]
        rows.append([row.name, *cells, rate_text(row.identified.overall.rate, row.identified.overall.interval)])
    return markdown_table(["system", *names, "all"], rows)


def _counts(results: LanguageResults) -> str:
    rows: list[Sequence[str]] = []
    for row in results.rows:
        for name, one in row.languages.items():
            c = one.counts
            numbers = (one.utterances, c.n, c.s, c.d, c.i)
            rows.append([row.name, row.condition, f"{name}, {_UNITS[one.unit]}", *(f"{v:,}" for v in numbers)])
    return markdown_table(["system", "", "language", "utterances", "N", "S", "D", "I"], rows, left=3)


def _named(row: LanguageRow) -> Row:
    """With a name that says the condition too."""
    return replace(row.row, name=f"{row.name}, {row.condition}")

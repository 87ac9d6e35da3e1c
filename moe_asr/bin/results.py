"""Writes the results table of a recipe from its decodes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from moe_asr.config import run_command


@dataclass(frozen=True)
class ResultsConfig:
    """Scores the decodes of several systems on the same utterances and writes the table to RESULTS.md.

    Only the part of the file between its two marks is rewritten; what people wrote around it stays.

    Args:
        systems: rows of the table as name=decode_dir[,decode_dir...], the system to compare with first; on the command
            line repeat --systems+; with by language, those that were told the language of each utterance
        agnostic: with by language, the same or other systems where they were not told it, written as systems are
        against: with by language, name of the system to compare with; default the first
        recipe_dir: folder of the recipe, in which the file lies
        output: name of the file
        title: heading of a new file; "Results of <last two folders>" if not given
        general: accent that counts as the general domain and is not pooled with the others
        by: what divides the test set; accent gives a column for each; speaker gives one for all, and a table by
            speaker; language the mean over languages, where it was told and where it was not, and a table by language
        metric: wer counts words; cer characters; mer Chinese, Japanese and Korean characters and other scripts' words;
            auto is wer or cer by how an utterance's language is written; default wer, and auto with by language
        normaliser: name of the text normaliser that both sides go through, default that of the first system's model
        bootstrap: replications for confidence intervals and p-values
        unit: what is resampled, single utterances or all utterances of a speaker together
        seed: of the random numbers for resampling
    """

    systems: list[str]
    agnostic: list[str] = field(default_factory=list)
    against: str | None = None
    recipe_dir: str = "."
    output: str = "RESULTS.md"
    title: str | None = None
    general: str | None = None
    by: Literal["accent", "speaker", "language"] = "accent"
    metric: Literal["wer", "cer", "mer", "auto"] | None = None
    normaliser: str | None = None
    bootstrap: int = 1000
    unit: Literal["utterance", "speaker"] = "utterance"
    seed: int = 0


def write_results(config: ResultsConfig) -> None:
    """Runs the command."""
    from moe_asr.errors import UserError
    from moe_asr.scoring.hypotheses import model_normaliser
    from moe_asr.scoring.significance import Bootstrap

    bootstrap = Bootstrap(config.bootstrap, config.unit, config.seed)
    first = config.systems[0].partition("=")[2].split(",")[0].strip() if config.systems else ""
    normaliser = config.normaliser or model_normaliser(first)
    if config.by != "language" and (config.agnostic or config.against):
        raise UserError("agnostic and against are for --by language")
    if config.by == "language" and config.general is not None:
        raise UserError("general is for --by accent")
    make = _by_language if config.by == "language" else _by_domain
    make(config, normaliser, bootstrap)


def _by_domain(config: ResultsConfig, normaliser: str, bootstrap) -> None:
    from moe_asr.scoring.results import make_results, read_row
    from moe_asr.scoring.results_file import rate_cells, rate_header, render

    metric = config.metric or "wer"
    rows = [read_row(system, metric, normaliser) for system in config.systems]
    results = make_results(rows, config.general, bootstrap, config.by)
    generated = render(results, config.recipe_dir, metric, normaliser, bootstrap)
    cells = [[row.name, *rate_cells(results, k, with_interval=False)] for k, row in enumerate(rows)]
    _write(config, generated, rate_header(results), cells, f"{metric.upper()} in %")


def _by_language(config: ResultsConfig, normaliser: str, bootstrap) -> None:
    from moe_asr.scoring.language_results import make_language_results
    from moe_asr.scoring.language_tables import mean_cells, mean_header, render_languages

    metric = config.metric or "auto"
    results = make_language_results(config.systems, config.agnostic, metric, normaliser, bootstrap, config.against)
    generated = render_languages(results, config.recipe_dir, normaliser, bootstrap)
    _write(config, generated, mean_header(), mean_cells(results, with_interval=False), "mean error rate in %")


def _write(config: ResultsConfig, generated: str, header: list[str], rows: list[list[str]], what: str) -> None:
    from moe_asr.scoring.results_file import update_results
    from moe_asr.scoring.tables import console, plain_table

    recipe = Path(config.recipe_dir)
    title = config.title or f"Results of {'/'.join(recipe.resolve().parts[-2:])}"
    update_results(recipe / config.output, title, generated)
    table = plain_table([name.replace(" ", "\n") for name in header])
    for row in rows:
        table.add_row(*row)
    console().print(table)
    print(f"{what}; with intervals, counts and commands in {recipe / config.output}")


if __name__ == "__main__":
    run_command(ResultsConfig, write_results)

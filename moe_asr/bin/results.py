"""Writes the results table of a recipe from its decodes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from moe_asr.config import run_command


@dataclass(frozen=True)
class ResultsConfig:
    """Scores the decodes of several systems on the same utterances and writes the table to RESULTS.md.

    Only the part of the file between its two marks is rewritten; what people wrote around it stays.

    Args:
        systems: rows of the table as name=decode_dir[,decode_dir...], the system to compare with first; on the command
            line repeat --systems+
        recipe_dir: folder of the recipe, in which the file lies
        output: name of the file
        title: heading of a new file; "Results of <last two folders>" if not given
        general: accent that counts as the general domain and is not pooled with the others
        by: what divides the test set: accent gives a column for each; speaker gives one for all, and a table by speaker
        metric: wer counts words; cer characters; mer Chinese, Japanese and Korean characters and other scripts' words
        normaliser: name of the text normaliser that both sides go through, default that of the first system's model
        bootstrap: replications for confidence intervals and p-values
        unit: what is resampled, single utterances or all utterances of a speaker together
        seed: of the random numbers for resampling
    """

    systems: list[str]
    recipe_dir: str = "."
    output: str = "RESULTS.md"
    title: str | None = None
    general: str | None = None
    by: Literal["accent", "speaker"] = "accent"
    metric: Literal["wer", "cer", "mer"] = "wer"
    normaliser: str | None = None
    bootstrap: int = 1000
    unit: Literal["utterance", "speaker"] = "utterance"
    seed: int = 0


def write_results(config: ResultsConfig) -> None:
    """Runs the command."""
    from moe_asr.scoring.hypotheses import model_normaliser
    from moe_asr.scoring.results import make_results, read_row
    from moe_asr.scoring.results_file import rate_cells, rate_header, render, update_results
    from moe_asr.scoring.significance import Bootstrap
    from moe_asr.scoring.tables import console, plain_table

    bootstrap = Bootstrap(config.bootstrap, config.unit, config.seed)
    first = config.systems[0].partition("=")[2].split(",")[0].strip() if config.systems else ""
    normaliser = config.normaliser or model_normaliser(first)
    rows = [read_row(system, config.metric, normaliser) for system in config.systems]
    results = make_results(rows, config.general, bootstrap, config.by)
    recipe = Path(config.recipe_dir)
    title = config.title or f"Results of {'/'.join(recipe.resolve().parts[-2:])}"
    generated = render(results, recipe, config.metric, normaliser, bootstrap)
    update_results(recipe / config.output, title, generated)

    table = plain_table([name.replace(" ", "\n") for name in rate_header(results)])
    for k, row in enumerate(rows):
        table.add_row(row.name, *rate_cells(results, k, with_interval=False))
    console().print(table)
    print(f"{config.metric.upper()} in %; with intervals, counts and commands in {recipe / config.output}")


if __name__ == "__main__":
    run_command(ResultsConfig, write_results)

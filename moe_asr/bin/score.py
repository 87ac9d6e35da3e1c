"""Scores a decode: error rates by group, confidence intervals, comparison with another decode."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from moe_asr.config import run_command


@dataclass(frozen=True)
class ScoreConfig:
    """Scores a decode folder, prints a table and writes recogs-, errs- and wer-summary-<set>.txt and scores.json there.

    Args:
        decode_dir: folder that decoding wrote to
        metric: wer counts words; cer characters; mer Chinese, Japanese and Korean characters and other scripts' words;
            auto is wer or cer by how an utterance's language is written, see scoring/writing.py
        normaliser: name of the text normaliser that both sides go through, default the model's; raw text is scored too
        compare: another decode of the same utterances; its paired comparison with this one is shown
        set_name: name of the test set in file names; the folder's name if not given
        bootstrap: replications for confidence intervals and p-values
        unit: what is resampled, single utterances or all utterances of a speaker together
        seed: of the random numbers for resampling
        allow_partial: score a decode which has not ended
    """

    decode_dir: str
    metric: Literal["wer", "cer", "mer", "auto"] = "wer"
    normaliser: str | None = None
    compare: str | None = None
    set_name: str | None = None
    bootstrap: int = 1000
    unit: Literal["utterance", "speaker"] = "utterance"
    seed: int = 0
    allow_partial: bool = False


def score(config: ScoreConfig) -> None:
    """Runs the command."""
    from moe_asr.errors import UserError
    from moe_asr.provenance import record
    from moe_asr.scoring.hypotheses import model_normaliser, read_hypotheses
    from moe_asr.scoring.report import make_report, write_report
    from moe_asr.scoring.significance import Bootstrap
    from moe_asr.scoring.tables import print_report

    bootstrap = Bootstrap(config.bootstrap, config.unit, config.seed)
    hypotheses = read_hypotheses(config.decode_dir, config.allow_partial)
    other = None if config.compare is None else read_hypotheses(config.compare, config.allow_partial)
    set_name = config.set_name or Path(config.decode_dir).resolve().name
    if "/" in set_name:
        raise UserError(f"set_name '{set_name}' becomes part of file names: write it without '/'")
    config = replace(config, normaliser=config.normaliser or model_normaliser(config.decode_dir))
    report, texts = make_report(set_name, hypotheses, config.metric, config.normaliser, bootstrap, other)
    written = write_report(config.decode_dir, report, texts, {"settings": asdict(config), **record()})
    print_report(report, against=config.compare)
    print(f"written to {config.decode_dir}: {', '.join(written)}")


if __name__ == "__main__":
    run_command(ScoreConfig, score)

"""Prepares a corpus: a table in, a manifest and a list of what was rejected out."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from moe_asr.config import run_command
from moe_asr.data.checks import CheckConfig


@dataclass(frozen=True)
class PrepareConfig:
    """Checks the utterances of a table, normalises their text and writes a manifest.

    Args:
        table: Tab-separated text with the columns id, audio, text and perhaps speaker, accent, language, start,
            duration; audio paths are absolute or relative to the table.
        manifest: To write: lhotse cuts as JSON lines, gzipped if the name ends in .gz.
        rejected: To write: what was rejected and why; by default rejected-NAME.jsonl beside the manifest.
        normaliser: Name of the text normaliser.
        check: What is accepted.
    """

    table: str
    manifest: str
    rejected: str = ""
    normaliser: str = "english"
    check: CheckConfig = dataclasses.field(default_factory=CheckConfig)


def prepare(config: PrepareConfig) -> None:
    from moe_asr.data.checks import check, require_few, write_rejections
    from moe_asr.data.manifests import summary, write_manifest
    from moe_asr.data.tables import read_table

    manifest = Path(config.manifest)
    name = manifest.name.removesuffix(".gz").removesuffix(".jsonl")
    rejected = config.rejected or str(manifest.parent / f"rejected-{name}.jsonl")
    rows = read_table(config.table)
    utterances, rejections = check(rows, config.normaliser, config.check)
    write_rejections(rejected, rejections)
    require_few(config.table, len(rows), rejections, config.check.max_rejected, rejected)
    write_manifest(manifest, utterances)
    note = f"; rejected {len(rejections)} ({rejected})" if rejections else ""
    print(f"{name}: {summary(utterances)}{note}")


if __name__ == "__main__":
    run_command(PrepareConfig, prepare)

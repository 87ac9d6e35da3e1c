"""A decode folder, as decoding leaves it: `hyps.jsonl`, one utterance a line, and `system.json` once all are there."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from pathlib import Path

from moe_asr.errors import UserError
from moe_asr.strict_json import parse_json

HYPOTHESES = "hyps.jsonl"
SYSTEM = "system.json"


@dataclass(frozen=True)
class Hypothesis:
    """One decoded utterance, texts as published and as recognised, neither normalised.

    Args:
        id: unique name
        ref: what was said
        hyp: what was recognised
        speaker: who said it; "" where not known, as for the next two
        accent: with which accent
        language: in which language
        duration: seconds of audio
        detected: the language that the model took it for, where it was not told one
    """

    id: str
    ref: str
    hyp: str
    speaker: str = ""
    accent: str = ""
    language: str = ""
    duration: float = 0.0
    detected: str = ""


def read_hypotheses(decode_dir: str | Path, allow_partial: bool = False) -> list[Hypothesis]:
    """Reads the utterances of a decode folder, in the order of decoding.

    Args:
        decode_dir: the folder
        allow_partial: take what there is of a decode that has not ended, and say so on stderr

    Raises:
        UserError: no such folder; decoding has not ended; a line which is not what decoding writes; an id that comes
            twice; no utterance at all. The message names file and line.
    """
    path = Path(decode_dir, HYPOTHESES)
    if not path.is_file():
        raise UserError(f"no {HYPOTHESES} in {decode_dir}: is it the out_dir of a decode?")
    partial = not Path(decode_dir, SYSTEM).is_file()
    if partial and not allow_partial:
        raise UserError(
            f"decoding into {decode_dir} has not ended (no {SYSTEM}): run the same decode again to finish it, "
            "or score what there is with --allow_partial true"
        )
    lines = path.read_bytes().split(b"\n")
    cut_off = lines.pop()  # b"" where the last line is whole
    if cut_off and not partial:
        raise UserError(f"{path}:{len(lines) + 1}: the last line is cut off; delete {SYSTEM} and decode again")
    hypotheses = [_parse(line, f"{path}:{number}") for number, line in enumerate(lines, 1)]
    _check_unique(hypotheses, path)
    if not hypotheses:
        raise UserError(f"{path} holds no utterance: was the manifest empty?")
    if partial:
        print(f"warning: {decode_dir} is not complete, scoring {len(hypotheses)} utterances", file=sys.stderr)
    return hypotheses


def read_system(decode_dir: str | Path) -> dict:
    """Reads `system.json`: which model and adapter decoded, how, and how large they are.

    Raises:
        UserError: it is missing, which is how an unfinished decode looks, or not a JSON object.
    """
    path = Path(decode_dir, SYSTEM)
    if not path.is_file():
        raise UserError(f"no {SYSTEM} in {decode_dir}: run its decode again to finish it")
    try:
        system = parse_json(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): decode again") from None
    if not isinstance(system, dict):
        raise UserError(f"{path} is not a JSON object: decode again")
    return system


def model_normaliser(decode_dir: str | Path) -> str:
    """The normaliser that the model's transcripts went through; `none` where the decode does not say."""
    if not Path(decode_dir, SYSTEM).is_file():
        return "none"
    name = read_system(decode_dir).get("normaliser") or "none"
    if not isinstance(name, str):
        raise UserError(f"{Path(decode_dir, SYSTEM)}: 'normaliser' is {name!r}, not a name; decode again")
    return name


def _parse(line: bytes, where: str) -> Hypothesis:
    try:
        values = parse_json(line)
    except UnicodeDecodeError:
        raise UserError(f"{where}: not UTF-8; decode again, or convert the file") from None
    except ValueError as error:
        raise UserError(f"{where}: not JSON ({error}); delete the line and decode again") from None
    if not isinstance(values, dict):
        raise UserError(f"{where}: not a JSON object; delete the line and decode again")
    known = {}
    for field in fields(Hypothesis):
        value = values.get(field.name)
        if value is None and field.name in ("id", "ref", "hyp"):
            raise UserError(f"{where}: no '{field.name}'; every line needs id, ref and hyp")
        if value is not None:
            expected = (int, float) if field.name == "duration" else str
            if not isinstance(value, expected) or isinstance(value, bool):
                raise UserError(f"{where}: '{field.name}' is {value!r}, not a {field.type}")
            known[field.name] = value
    if not known["id"] or not known["id"].isprintable():
        raise UserError(f"{where}: the id {known['id']!r} is empty or cannot be printed; decode again")
    if not 0 <= known.get("duration", 0) < float("inf"):
        raise UserError(f"{where}: a duration of {known['duration']} s; decode again")
    return Hypothesis(**known)


def _check_unique(hypotheses: list[Hypothesis], path: Path) -> None:
    line_of: dict[str, int] = {}
    for number, hypothesis in enumerate(hypotheses, 1):
        first = line_of.setdefault(hypothesis.id, number)
        if first != number:
            raise UserError(f"{path}:{number}: utterance '{hypothesis.id}' was already on line {first}; decode again")

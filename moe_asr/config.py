"""Typed configuration: frozen dataclasses, YAML files and the command line.

Every command has one frozen dataclass as its configuration. Values come from, in falling precedence, the command line
(`--optim.lr 1e-4`), the file given with `--config`, and the defaults in the dataclass. Unknown keys and wrong types are
errors. The resolved configuration is saved with what it produced, so nothing is ever repeated by hand. A field of
type str or list[str] with `metadata={"positional": True}` takes what stands on the command line without an option.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
import os
import re
import sys
import typing
import warnings
from pathlib import Path
from typing import Callable, Mapping, Optional, Sequence, TypeVar

import docstring_parser
import jsonargparse
import yaml

from moe_asr.errors import UserError
from moe_asr.files import atomic_write
from moe_asr.strict_yaml import read_yaml

C = TypeVar("C")
_LONGEST = 1500  # characters of a message


def parse_config(config_type: type[C], argv: Optional[Sequence[str]] = None, prog: Optional[str] = None) -> C:
    """Parses command line and `--config` file into `config_type`.

    Raises:
        UserError: unknown key, wrong type or missing value; the message is one line.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    argv = [part for word in argv for part in (word.split("=", 1) if word.startswith("--config=") else [word])]
    for option, path in zip(argv, argv[1:]):
        if option == "--config":
            if not Path(path).is_file():
                raise UserError(f"no configuration file at {path}")
            _check_keys(config_type, read_yaml(path), str(path))
    return _build(config_type, prog, lambda parser: parser.parse_args(argv))


def load_config(config_type: type[C], path: str | Path) -> C:
    """Reads a YAML file written by `save_config` or by hand.

    Raises:
        UserError: the file is missing, is not YAML, or does not fit `config_type`.
    """
    return parse_config(config_type, ["--config", str(path)], prog="config")


def save_config(config, path: str | Path) -> None:
    """Writes a dataclass as YAML, all values resolved, atomically."""
    with atomic_write(path) as file:
        yaml.safe_dump(to_plain(config), file, sort_keys=False, allow_unicode=True)


def from_plain(config_type: type[C], values: dict) -> C:
    """The inverse of `to_plain`, with the same checks as `load_config`."""
    return _build(config_type, "config", lambda parser: parser.parse_object(values))


def to_plain(value):
    """Dataclasses to dicts and tuples to lists, so that YAML and JSON can hold them; unset parts are left out."""
    if dataclasses.is_dataclass(value):
        items = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {name: to_plain(item) for name, item in items.items() if item is not None}
    if isinstance(value, dict):
        return {name: to_plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return value


def run_commands(
    commands: Mapping[str, tuple[type, Callable[..., None]]], argv: Optional[Sequence[str]] = None
) -> None:
    """`run_command` for a command with subcommands, the first word of the command line."""
    argv = list(sys.argv[1:] if argv is None else argv)
    name = Path(sys.argv[0]).name
    known = ", ".join(commands)
    if argv[:1] in (["-h"], ["--help"]):
        print(f"usage: {name} SUBCOMMAND [options]; SUBCOMMAND --help tells its options\n")
        for subcommand, (config_type, _) in commands.items():
            print(f"  {subcommand:10}{' '.join(_summary(config_type).split())}")
    elif not argv:
        _fail(UserError(f"give a subcommand: {known}"), 2)
    elif argv[0] not in commands:
        near = difflib.get_close_matches(argv[0], commands, n=1)
        advice = f"did you mean '{near[0]}'?" if near else f"known are {known}"
        _fail(UserError(f"there is no subcommand '{argv[0]}'; {advice}"), 2)
    else:
        run_command(*commands[argv[0]], argv[1:], f"{name} {argv[0]}")


def run_command(
    config_type: type[C], run: Callable[[C], None], argv: Optional[Sequence[str]] = None, prog: Optional[str] = None
) -> None:
    """The whole life of a command: parse, run, and one clear line when it fails.

    Exit codes: 0 done, 1 the run failed, 2 the command line or configuration is wrong, 130 interrupted.
    With MOE_ASR_DEBUG=1 in the environment the traceback is shown as well.
    """
    try:
        config = parse_config(config_type, argv, prog)
    except UserError as error:
        _fail(error, 2)
    try:
        run(config)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has gone, as in `command | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (UserError, OSError) as error:
        _fail(error, 1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def one_line(error: Exception) -> str:
    """What an error of the user's or of the system says: one line of characters that can be printed."""
    if isinstance(error, OSError) and error.filename:
        line = f"{error.strerror}: {error.filename}"
    else:
        line = " ".join(str(error).split())
    if len(line) > _LONGEST:
        line = f"{line[: _LONGEST - 500]} [...] {line[-480:]}"
    # what a file holds shall not steer a terminal
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line)


def _check_keys(config_type: type, values: dict, where: str) -> None:
    """Names the first unknown key; jsonargparse overlooks one whose value is empty."""
    hints = typing.get_type_hints(config_type)
    for key, value in values.items():
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            advice = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(hints)}"
            raise UserError(f"{where}: unknown key '{key}'; {advice}")
        if value is None and type(None) not in typing.get_args(hints[key]):
            raise UserError(f"{where}: {key} is empty; give it a value, or leave it out")
        for part in (hints[key], *typing.get_args(hints[key])):
            if dataclasses.is_dataclass(part):
                for item in value if isinstance(value, list) else [value]:
                    if isinstance(item, dict):
                        _check_keys(part, item, f"{where}: {key}")


def _build(config_type: type[C], prog: Optional[str], parse: Callable) -> C:
    """The configuration from what `parse` gets out of its parser."""
    parser = _parser(config_type, prog)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values = parse(parser)
            values.pop("config", None)
            return _without_nan(config_type(**vars(parser.instantiate(values))))
    except jsonargparse.ArgumentError as error:
        raise UserError(_explain(str(error), config_type)) from None


def _without_nan(value: C, name: str = "the configuration") -> C:
    """Raises UserError for a number that is none, which no comparison with a limit would find."""
    if isinstance(value, float) and math.isnan(value):
        raise UserError(f"{name} is nan, not a number")
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            _without_nan(getattr(value, field.name), field.name)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _without_nan(item, name)
    return value


def _parser(config_type: type, prog: Optional[str]) -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(prog=prog, description=_summary(config_type), exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with any of the values below")
    free = [f for f in dataclasses.fields(config_type) if f.metadata.get("positional")]
    hints = typing.get_type_hints(config_type)
    for name in (f.name for f in free):  # first, for a missing one is then named
        many = {} if hints[name] is str else {"nargs": "*", "default": argparse.SUPPRESS}
        parser.add_argument(name, type=str, help=_help(config_type, name), **many)
    parser.add_class_arguments(config_type, None, skip={f.name for f in free})
    return parser


def _summary(config_type: type) -> str:
    """What the docstring of a configuration says before its fields."""
    return (config_type.__doc__ or "").split("Args:")[0].strip()


def _help(config_type: type, name: str) -> str:
    """What the docstring of a configuration says of one of its fields."""
    arguments = docstring_parser.parse(config_type.__doc__ or "").params
    return next((" ".join((a.description or "").split()) for a in arguments if a.arg_name == name), "")


def _explain(message: str, config_type: type) -> str:
    """jsonargparse's message on one line, with the nearest existing key where one was misspelt."""
    line = " ".join(message.split()).replace("typing.", "").replace("Parser key ", "")
    # An optional part: what is wrong inside it, not that it is not None either.
    inner = re.search(r"Problem with given class_path '[^']*': (.*?) - Expected a <class 'NoneType'>", line)
    line = inner.group(1) if inner else line
    if "accept" in line or "unrecognized" in line:
        known = _keys(config_type)
        for word in re.findall(r"[\w.]+", line.split(":")[-1]):
            for part in word.split("."):
                near = difflib.get_close_matches(part, known, n=1, cutoff=0.75)
                if near and part not in known:
                    return f"{line}; did you mean '{near[0]}'?"
    return line


def _keys(config_type: type) -> list[str]:
    """All field names of a configuration and of the configurations inside it."""
    names = []
    for name, hint in typing.get_type_hints(config_type).items():
        names.append(name)
        for part in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(part):
                names += _keys(part)
    return names


def _fail(error: Exception, code: int) -> None:
    if os.environ.get("MOE_ASR_DEBUG") == "1":
        import traceback

        traceback.print_exc()
    print(f"error: {one_line(error)}", file=sys.stderr)
    sys.exit(code)

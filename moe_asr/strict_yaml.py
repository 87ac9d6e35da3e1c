"""YAML configuration files from anybody: plain values, each key once, and no larger than they look."""

from __future__ import annotations

from pathlib import Path

import yaml

from moe_asr.errors import UserError

_MOST = 100_000  # values; `&a` and `*a` write more than any memory holds in a few lines


def read_yaml(path: str | Path) -> dict:
    """The keys and values of a file; an empty one has none.

    Raises:
        UserError: it is no YAML, holds something else, a key twice, or values that contain themselves.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        _check(yaml.compose(text, Loader=yaml.SafeLoader), str(path))
        values = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        place = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or error
        raise UserError(f"{path}{f':{place.line + 1}' if place else ''} is no YAML: {reason}") from None
    except RecursionError:
        raise UserError(f"{path} is no configuration: it is nested too deeply") from None
    except UserError:
        raise
    except (ValueError, OverflowError) as error:  # what looks like a date or a number and is none
        raise UserError(f"{path} is no configuration: {error}; put such a value in quotes") from None
    if values is not None and not isinstance(values, dict):
        raise UserError(f"{path} is no configuration: it must hold `key: value` lines")
    return values or {}


def _check(root: yaml.Node | None, path: str) -> None:
    sizes: dict[int, int] = {}

    def size(node: yaml.Node) -> int:
        """How many values a node stands for, with all that it repeats."""
        known = sizes.get(id(node))
        if known == 0:
            raise UserError(f"{path}:{node.start_mark.line + 1}: a value contains itself")
        if known is None:
            sizes[id(node)] = 0  # not known yet
            sizes[id(node)] = 1 + sum(map(size, _parts(node, path)))
        if sizes[id(node)] > _MOST:
            raise UserError(f"{path} is no configuration: it stands for more than {_MOST:,} values")
        return sizes[id(node)]

    if root is not None:
        size(root)


def _parts(node: yaml.Node, path: str) -> list[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        return node.value
    if not isinstance(node, yaml.MappingNode):
        return []
    seen = set()
    for key, _ in node.value:
        name = key.value if isinstance(key, yaml.ScalarNode) else None
        if name is None or name in seen:
            what = "a key that is no word" if name is None else f"'{name}' is there twice"
            raise UserError(f"{path}:{key.start_mark.line + 1}: {what}")
        seen.add(name)
    return [part for pair in node.value for part in pair]

"""Configuration files: what is accepted is of the types that were asked for, and saved and loaded again as it was."""

import dataclasses
import math
from typing import Literal, Optional

import pytest
from hostile import REFUSED, attempt, damaged, hostile
from hypothesis import example, given
from hypothesis import strategies as st

from moe_asr.config import load_config, save_config
from moe_asr.errors import UserError


@dataclasses.dataclass(frozen=True)
class Inner:
    """A part of a configuration.

    Args:
        rate: a number
        kind: one of two
    """

    rate: float = 0.5
    kind: Literal["mean", "sum"] = "mean"


@dataclasses.dataclass(frozen=True)
class Outer:
    """A configuration with a field of each kind that there is.

    Args:
        name: a text
        steps: a whole number
        names: texts
        on: yes or no
        limit: perhaps a number
        inner: a part
        other: perhaps a part
    """

    name: str
    steps: int = 3
    names: tuple[str, ...] = ()
    on: bool = False
    limit: Optional[float] = None
    inner: Inner = Inner()
    other: Optional[Inner] = None


GOOD = b"""name: a run  # comment
steps: 5
names: [a, "b: c", 'd']
on: true
limit: 1e-3
inner:
  rate: 0.25
  kind: sum
other: {rate: 1}
"""
SIGNS = [".nan", ".inf", "2020-99-99", "<<: *a", "!!python/name:os.system", "&a [*a]", "yes", "0x1f", "1:30", "steps: "]
TYPES = {"name": str, "steps": int, "names": tuple, "on": bool, "limit": (float, type(None)), "inner": Inner}


@hostile
@given(content=st.one_of(*[damaged(GOOD, SIGNS)] * 4, st.binary(max_size=60), st.text(max_size=40).map(str.encode)))
@example(content=b"name: 2020-99-99\n")  # found: a traceback
@example(content=b"name: a\nlimit: .nan\n")  # found: accepted
@example(content=b"name: a\nname: b\n")  # found: the last counted
@example(content=b"name: &a [*a]\n")
@example(content=b"[" * 5000)  # found: a traceback
def test_configuration(content, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    config = attempt(load_config, Outer, path)
    if config is REFUSED:
        return
    for name, kind in TYPES.items():
        assert isinstance(getattr(config, name), kind), name
    assert type(config.steps) is int and all(isinstance(name, str) for name in config.names)
    for part in (config.inner, config.other or config.inner):
        assert isinstance(part.rate, float) and not math.isnan(part.rate) and part.kind in ("mean", "sum")
    save_config(config, tmp_path / "again.yaml")
    assert load_config(Outer, tmp_path / "again.yaml") == config


def test_a_few_lines_that_stand_for_a_billion_values(tmp_path):
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"{y}: &{y} [{', '.join([f'*{x}'] * 10)}]" for x, y in zip("abcdefgh", "bcdefghi")]
    (tmp_path / "c.yaml").write_text("\n".join([*lines, "name: x"]))
    with pytest.raises(UserError, match="stands for more than 100,000 values"):
        load_config(Outer, tmp_path / "c.yaml")


def test_a_key_that_comes_twice_is_named(tmp_path):
    (tmp_path / "c.yaml").write_text("name: a\ninner:\n  rate: 1\n  rate: 2\n")
    with pytest.raises(UserError, match="c.yaml:4: 'rate' is there twice"):
        load_config(Outer, tmp_path / "c.yaml")

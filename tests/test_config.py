import subprocess
import sys
from dataclasses import dataclass, field
from typing import Literal, Optional

import pytest

from moe_asr.config import from_plain, load_config, parse_config, run_command, save_config, to_plain
from moe_asr.errors import UserError


@dataclass(frozen=True)
class Optim:
    """Optimiser.

    Args:
        lr: peak learning rate
        kind: algorithm
    """

    lr: float = 1e-3
    kind: Literal["adamw", "sgd"] = "adamw"


@dataclass(frozen=True)
class Layer:
    targets: tuple[str, ...] = ("q",)
    rank: int = 4


@dataclass(frozen=True)
class Config:
    """Trains a thing.

    Args:
        exp_dir: where results go
    """

    exp_dir: str
    optim: Optim = field(default_factory=Optim)
    layer: Optional[Layer] = None
    layers: tuple[Layer, ...] = ()
    bf16: bool = False


def test_command_line_over_file_over_default(tmp_path):
    (tmp_path / "a.yaml").write_text("exp_dir: x\noptim: {lr: 1e-4}\nlayers:\n- {rank: 2}\n")
    config = parse_config(Config, ["--config", str(tmp_path / "a.yaml"), "--optim.lr", "0.5", "--layer.rank", "7"])
    assert config == Config("x", Optim(0.5), Layer(rank=7), (Layer(rank=2),))


def test_round_trip(tmp_path):
    config = Config("x", Optim(3e-5, "sgd"), Layer(("k", "v"), 2), (Layer(),), True)
    save_config(config, tmp_path / "c.yaml")
    assert load_config(Config, tmp_path / "c.yaml") == config
    assert from_plain(Config, to_plain(config)) == config
    assert from_plain(Config, to_plain(Config("y"))) == Config("y")


@pytest.mark.parametrize(
    "argv, says",
    [
        (["--exp_dir", "x", "--optim.lrr", "3"], "did you mean 'lr'"),
        (["--exp_dir", "x", "--optm.lr", "3"], "did you mean 'optim'"),
        (["--exp_dir", "x", "--optim.lr", "fast"], "optim.lr"),
        (["--exp_dir", "x", "--optim.kind", "adam"], "sgd"),
        (["--exp_dir", "x", "--bf16", "maybe"], "bf16"),
        (["--exp_dir", "x", "--layer.rank", "many"], "\"rank\": Expected a <class 'int'>. Got value: many"),
        ([], "exp_dir"),
        (["--config", "/nowhere.yaml"], "nowhere"),
    ],
)
def test_bad_command_line_is_one_line(argv, says):
    with pytest.raises(UserError) as error:
        parse_config(Config, argv)
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text, says",
    [
        ("optim: {lrr: 1}", "did you mean 'lr'"),
        ("optm: {}", "did you mean 'optim'"),
        ("layers: [{ranc: }]", "did you mean 'rank'"),
        ("optm: {lr: 1}", "optm"),
        ("- 1", ""),
        ("a: [", ""),
    ],
)
def test_bad_file_is_one_line(tmp_path, text, says):
    (tmp_path / "b.yaml").write_text("exp_dir: x\n" + text if says else text)
    with pytest.raises(UserError) as error:
        load_config(Config, tmp_path / "b.yaml")
    assert says in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError) as error:
        parse_config(Config, [f"--config={tmp_path / 'b.yaml'}"])
    assert says in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match="no configuration file"):
        load_config(Config, tmp_path / "missing.yaml")


def test_exit_codes(capsys):
    def fails(config):
        raise UserError("no such thing;\n do this")

    def stopped(config):
        raise KeyboardInterrupt

    def missing(config):
        open("/nowhere/at/all")

    for run, argv, code, says in [
        (fails, ["--exp_dir", "x"], 1, "error: no such thing; do this\n"),
        (missing, ["--exp_dir", "x"], 1, "error: No such file or directory: /nowhere/at/all\n"),
        (stopped, ["--exp_dir", "x"], 130, "interrupted\n"),
        (fails, ["--exp-dir"], 2, "error: "),
    ]:
        with pytest.raises(SystemExit) as stop:
            run_command(Config, run, argv)
        assert stop.value.code == code
        assert capsys.readouterr().err.startswith(says)


def test_importing_config_does_not_import_torch():
    code = "import sys, moe_asr.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@dataclass(frozen=True)
class Reader:
    """Reads things.

    Args:
        model: what reads
        files: what is read
            and no more
    """

    model: str
    files: list[str] = field(default_factory=list, metadata={"positional": True})
    loud: bool = False


def test_words_without_an_option(tmp_path, capsys):
    assert parse_config(Reader, ["--model", "m", "a", "b"]) == Reader("m", ["a", "b"])
    assert parse_config(Reader, ["a", "--model", "m", "--loud", "true"]) == Reader("m", ["a"], True)
    assert parse_config(Reader, ["--model", "m"]) == Reader("m")
    (tmp_path / "c.yaml").write_text("model: m\nfiles: [a, b]\n")
    assert parse_config(Reader, ["--config", f"{tmp_path}/c.yaml"]) == Reader("m", ["a", "b"])
    assert parse_config(Reader, ["--config", f"{tmp_path}/c.yaml", "z"]) == Reader("m", ["z"])
    save_config(Reader("m", ["a"]), tmp_path / "d.yaml")
    assert load_config(Reader, tmp_path / "d.yaml") == Reader("m", ["a"])
    for argv, message in ((["a"], "model"), (["--model", "m", "--modle", "x", "a"], "did you mean 'model'")):
        with pytest.raises(UserError, match=message):
            parse_config(Reader, argv)
    with pytest.raises(SystemExit):
        parse_config(Reader, ["--help"])
    assert "what is read and no more" in " ".join(capsys.readouterr().out.split())


@dataclass(frozen=True)
class Opener:
    """Opens one.

    Args:
        path: what is opened
        loud: noise
    """

    path: str = field(metadata={"positional": True})
    loud: bool = False


def test_one_word_without_an_option(tmp_path):
    assert parse_config(Opener, ["--loud", "true", "a"]) == Opener("a", True)
    save_config(Opener("b"), tmp_path / "c.yaml")
    assert load_config(Opener, tmp_path / "c.yaml") == Opener("b")
    for argv, message in (([], "required: path"), (["a", "b"], "b")):
        with pytest.raises(UserError, match=message):
            parse_config(Opener, argv)

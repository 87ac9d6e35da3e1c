"""No option of a recipe, and no name in its data, is ever run as code: each reaches the commands as it is.

The stages of every recipe run, with a `python3` that only notes its arguments in the place of the toolkit.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(str(path.parent.relative_to(ROOT / "egs")) for path in ROOT.glob("egs/*/*/run.sh"))
MARK = "PWNED"  # the file that shows that a value was run
VALUES = [
    f"$(touch {MARK})`touch {MARK}`${{x:=$(touch {MARK})}}",
    f"a[$(touch {MARK})]",  # what bash evaluates in arithmetic
    f'x";touch {MARK}|e;#&',  # `e` makes GNU sed run its line
    f"-n two  words\t*\\\n';touch {MARK};'",
]
NAMES = ["scottish", f'"$(touch {MARK})"', "a b", "-e", f"x|e;touch {MARK}", "c\\d&"]
SPOKEN = ["languages", "digits", "systems", "against", "encoder", "lm", "size", "corpus"]  # refused by other words
STUB = """#!/usr/bin/env bash
[ $# = 0 ] || printf '%s\\0' "$@" >>"$ARGUMENTS"
"""


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    folder = tmp_path_factory.mktemp("house")
    leave = shutil.ignore_patterns("data", "exp", "downloads", "__pycache__")
    for name in ("utils", "egs"):
        shutil.copytree(ROOT / name, folder / name, ignore=leave)
    for name, text in (("tools/setup.sh", "#!/usr/bin/env bash\n"), ("bin/python3", STUB)):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


def start(house, recipe, cwd, *options):
    environment = os.environ | {"PATH": f"{house}/bin:{os.environ['PATH']}", "ARGUMENTS": str(cwd / "arguments")}
    run = house / "egs" / recipe / "run.sh"
    return subprocess.run(
        [run, *options], cwd=cwd, env=environment, capture_output=True, text=True, errors="replace", timeout=120
    )


def options_of(house, recipe, cwd):
    text = start(house, recipe, cwd, "--help").stdout
    names = re.findall(r"^  --([a-z-]+) ", text, re.MULTILINE)
    return [name for name in names if name not in ("config", "stage", "stop-stage")]


def fill(data):
    """What the first stage would have made, and what a recipe looks for in its corpora."""
    for name in ("KeSpeech/Tasks", "aishell/data_aishell", "zh-CN/clips", "speechocean762", "whisper-tiny.en"):
        (data / name).mkdir(parents=True, exist_ok=True)
    for name in ("train_general", "train_accents"):
        (data / f"{name}.tsv").write_text("id\taccent\n" + "".join(f"u{i}\t{name}\n" for i, name in enumerate(NAMES)))
    for name in ("init_speakers.txt", "adapt_speakers.txt", "speakers.txt"):
        (data / name).write_text("".join(f"{name}\n" for name in NAMES))


def run_all(house, recipe, cwd, options):
    """All stages, those after a failed one too; the options that the recipe refuses are left out."""
    stage = 0
    for _ in range(40):
        words = [f"--{name}={value}" for name, value in options.items()]
        done = start(house, recipe, cwd, *words, *([f"--stage={stage}"] if stage else []))
        assert "syntax error" not in done.stderr and "unbound" not in done.stderr, done.stderr
        if done.returncode == 0:
            return options
        failed = re.search(r"^stage (\d+): failed", done.stderr, re.MULTILINE)
        refused = re.search(r"--([a-z-]+)", done.stderr.replace("--help", ""))
        if failed:
            stage = int(failed[1]) + 1
        elif "there is no stage" in done.stderr:
            return options
        elif done.returncode == 2 and refused and refused[1] in options:
            options = {name: value for name, value in options.items() if name != refused[1]}
        else:  # told in other words: `no system '...'`, `language ... is none of ...`
            spoken = [name for name in SPOKEN if name in options]
            assert done.returncode == 2 and spoken, done.stderr
            named = next((name for name in spoken if name.rstrip("s") in done.stderr), spoken[0])
            options = {key: value for key, value in options.items() if key != named}
    raise AssertionError(done.stderr)


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_option_is_run(recipe, house, tmp_path):
    names = options_of(house, recipe, tmp_path)
    assert {"data-dir", "exp-dir", "training"} <= set(names)
    for number, value in enumerate(VALUES):
        cwd = tmp_path / str(number)
        fill(cwd / value)
        used = run_all(house, recipe, cwd, dict.fromkeys(names, value))
        assert not list(tmp_path.rglob(MARK)) and not list(house.rglob(MARK)), f"{value!r} was run"
        assert {"data-dir", "exp-dir"} <= set(used)
        names = list(used)  # what was refused once is refused again
        arguments = (cwd / "arguments").read_bytes().decode().split("\0")
        assert any(f"{cwd}/{value}" in argument for argument in arguments), "it did not reach the commands"


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_name_in_the_data_is_run(recipe, house, tmp_path):
    fill(tmp_path / "d")
    own = {"data-dir": "d", "exp-dir": "e"}
    own |= {name: "d" for name in options_of(house, recipe, tmp_path) if name in ("corpus-dir", "model-dir")}
    run_all(house, recipe, tmp_path, own)
    assert not list(tmp_path.rglob(MARK)) and not list(house.rglob(MARK))


def test_the_test_would_find_it(house, tmp_path):
    """The expression of sed that names went through once: `e` of GNU sed runs what it has made."""
    code = """sed "s|.*|\\"$1/&\\"|" <<<name"""
    subprocess.run(["bash", "-c", code, "-", VALUES[2]], cwd=tmp_path, capture_output=True, check=False)
    sed = subprocess.run(["sed", "--version"], capture_output=True, text=True, check=False)
    assert "GNU" not in sed.stdout or (tmp_path / MARK).exists()


@pytest.mark.parametrize("value", ["-1", "08", "1+1", "a[$(touch PWNED)]", "1 2", "999999"])
def test_numbers_of_stages(value, house, tmp_path):
    done = start(house, "mini_accents/asr1", tmp_path, f"--stop-stage={value}")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "take numbers" in done.stderr
    assert not list(tmp_path.rglob(MARK))


def test_lists_for_the_command_line_are_json(house, tmp_path):
    words = ['a"b', "c\\d", "e f", "$(x)", "&", "it's", "ö"]
    script = f". <(sed -n '/^json_list/,/^}}/p' {ROOT}/utils/recipe.sh); json_list \"$@\""
    done = subprocess.run(["bash", "-c", script, "-", *words], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == words

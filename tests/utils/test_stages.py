import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

THREE = """
value=$first
helper() { echo "helped $1"; }
stage_1() {
  stage "One" inputs "$input" outputs exp/one
  helper "$value" >exp/one
  cat conf/"$first".yaml local/tool.sh
}
stage_2() {
  stage "Two"
  echo "second=$second jobs=$nj"
}
stage_10() {
  stage "Ten"
  echo "ten"
}
"""
OPTIONS = "first=a # x\nsecond=b # x\ninput=in # x\nnj=2 # x\nunused=0 # x"


@pytest.fixture
def three(recipe):
    recipe.script(THREE, OPTIONS)
    recipe.write("conf/a.yaml", "a: 1")
    recipe.write("conf/z.yaml", "a: 1")
    recipe.write("local/tool.sh", "# tool")
    recipe.write("in", "input")
    return recipe


def ran(output: str) -> list[int]:
    """The numbers of the stages that were run to their end."""
    return [int(line.split()[1][:-1]) for line in output.splitlines() if ": done in " in line]


def test_runs_in_order_then_skips(three, tmp_path):
    output = three.run(cwd=tmp_path)
    assert ran(output) == [1, 2, 10]
    assert "stage 2: Two\nsecond=b jobs=2\nstage 2: done in 0:0" in output
    output = three.run()
    assert ran(output) == [] and output.count("done already, nothing changed") == 3
    assert ran(three.run("--nj", "3", "--unused", "1")) == []


def test_changed_variable(three):
    three.run()
    output = three.run("--second", "x")
    assert ran(output) == [2, 10]
    assert 'stage 2: Two (again, changed: second "b" -> "x")' in output and "Ten (again, changed: stage 2)" in output
    assert ran(three.run("--second", "x")) == []
    assert ran(three.run()) == [2, 10]


def test_changed_derived_variable_and_array(recipe):
    body = 'all=("$first" %s)\nstage_1() {\n  stage "One"\n  echo "${all[@]}"\n}'
    recipe.script(body % "x", OPTIONS)
    recipe.run()
    assert ran(recipe.run()) == []
    assert ran(recipe.run("--first", "q")) == [1]
    recipe.script(body % "y", OPTIONS)
    assert ran(recipe.run("--first", "q")) == [1]


@pytest.mark.parametrize("path", ["in", "conf/a.yaml", "local/tool.sh", "exp/one"])
def test_changed_file(three, path):
    three.run()
    text = (three.folder / path).read_text()
    (three.folder / path).write_text(text.replace(text[0], "X", 1))
    output = three.run()
    assert ran(output) == [1, 2, 10] and f"{path})" in output
    assert ran(three.run()) == []
    os.utime(three.folder / path, (1, 1))  # the same content
    assert ran(three.run()) == []


def test_removed_output_and_changed_folder(three):
    three.run()
    (three.folder / "exp/one").unlink()
    assert "changed: output exp/one" in three.run()
    for name in ["deep/a", "deep/b"]:
        three.write("folder/" + name, "1")
        assert ran(three.run("--input", "folder")) == [1, 2, 10]
        assert ran(three.run("--input", "folder")) == []


def test_changed_big_file(three):
    path = three.write("in", "x" * 2_000_000)
    three.run()
    assert ran(three.run()) == []
    os.utime(path, (1, 1))
    assert ran(three.run()) == [1, 2, 10]


@pytest.mark.parametrize("old, new", [("ten", "TEN"), ("helped", "HELPED"), ("second=", "third=")])
def test_changed_code(three, old, new):
    three.run()
    three.script("# a comment is not code\n" + THREE, OPTIONS)
    assert ran(three.run()) == []
    three.script(THREE.replace(old, new), OPTIONS)
    assert ran(three.run()) == {"ten": [10], "helped": [1, 2, 10], "second=": [2, 10]}[old]


def test_stage_and_stop_stage(three):
    assert ran(three.run("--stop-stage", "2")) == [1, 2]
    assert ran(three.run("--stage", "2", "--stop-stage", "2")) == [2]
    assert ran(three.run()) == [10]
    assert ran(three.run("--stage", "1")) == [1, 2, 10]
    assert ran(three.run("--stage", "1", "--stop-stage", "1")) == [1]
    assert ran(three.run()) == [2, 10]  # what they are made from is new


def test_what_a_stage_sets_stays_inside(recipe):
    recipe.script('x=0\nstage_1() {\n  stage A\n  x=1; cd /\n}\nstage_2() {\n  stage B\n  echo "x=$x in ${PWD##*/}"\n}')
    assert "x=0 in asr1" in recipe.run()


@pytest.mark.parametrize(
    "command, says",
    [
        ("false", "with exit code 1 at line 9: false"),
        ("(exit 7)", "with exit code 7"),
        ("cat /nowhere | sort", "with exit code 1 at line 9: sort"),
        ("x=$(false; touch wrong)", "with exit code 1 at line 9: x="),
        ('echo "$unset_variable"', "with exit code 1"),
        ("inner", "with exit code 1 at line 6: false"),
        ("exit 0", "with exit code 0"),
        ("kill -9 $BASHPID", "with exit code 137"),
    ],
)
def test_a_failing_command_stops_the_stage(recipe, command, says):
    recipe.script(
        "inner() { false; touch wrong; }\n"
        f"stage_1() {{\n  stage A\n  {command}\n  touch wrong\n}}\n"
        "stage_2() {\n  stage B\n  touch wrong\n}"
    )
    for _ in range(2):
        output = recipe.run(code=1)
        assert re.search(r"^stage 1: failed after 0:\d\d " + re.escape(says), output, re.MULTILINE)
    assert not (recipe.folder / "wrong").exists()


def test_errors_cannot_be_switched_off_unnoticed(recipe):
    recipe.script("stage_1() {\n  stage A\n  false\n}\nif run_stages; then :; fi")
    assert "run_stages must stand alone" in recipe.run(code=1)


def test_a_recipe_that_is_edited_while_it_runs_comes_to_its_end(recipe):
    recipe.script("stage_1() {\n  stage A\n  echo 'echo \"half a line' >>run.sh\n}")
    assert "stage 1: done in" in recipe.run()


def test_a_stage_needs_its_title(recipe):
    recipe.script("stage_1() {\n  true\n}")
    assert 'stage_1 must begin with: stage "Title"' in recipe.run(code=1)


def test_failed_job_is_named(recipe):
    recipe.script('stage_1() {\n  stage A\n  $train_cmd JOB=1:3 exp/x.JOB.log test JOB != 2\n  echo "not reached"\n}')
    output = recipe.run(code=1)
    assert "(log: exp/x.2.log) at line" in output and "not reached" not in output


SLOW = """
stage_1() {
  stage "Quick" outputs exp/one
  echo 1 >exp/one
}
stage_2() {
  stage "Slow"
  $train_cmd JOB=1:2 exp/slow.JOB.log bash -c 'touch exp/started.JOB; sleep 321 & sleep 321; touch exp/ended'
  touch exp/ended
}
"""


def started(recipe, *args: str) -> subprocess.Popen:
    """The slow recipe, in the midst of its second stage."""
    recipe.script(SLOW, "lr=1 # x")
    process = recipe.start(*args)
    deadline = time.time() + 30
    while not all((recipe.folder / f"exp/started.{job}").exists() for job in (1, 2)):
        assert time.time() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.02)
    return process


def alive(folder: Path) -> list[int]:
    """The processes at work in `folder`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if Path(os.readlink(process / "cwd")) == folder:
                found.append(int(process.name))
        except OSError:  # it ended meanwhile, or is not ours
            continue
    return found


@pytest.mark.parametrize("how, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_interrupted(recipe, how, code):
    process = started(recipe, "--lr", "2")
    assert alive(recipe.folder)
    os.killpg(process.pid, how)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code
    script = str(recipe.folder / "run.sh").replace(" ", "\\ ")
    assert err.strip() == f"stage 2: interrupted; to go on: {script} --lr 2"
    assert alive(recipe.folder) == []
    assert not (recipe.folder / "exp/ended").exists()
    assert sorted(p.name for p in (recipe.folder / "exp/.done").glob("stage*")) == ["stage1"]


def test_interrupted_after_an_explicit_first_stage(recipe):
    process = started(recipe, "--stage", "1", "--lr", "2", "--stage=1")
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=30)[1].endswith("run.sh --lr 2 --stage 2\n")


def test_killed_stage_does_not_count(recipe):
    process = started(recipe)
    second = recipe.start()
    assert "another run of this recipe is at work" in second.communicate(timeout=30)[1] and second.returncode == 1
    process.kill()
    process.wait()
    second = recipe.start()  # its stage still runs
    assert "another run of this recipe is at work" in second.communicate(timeout=30)[1]
    for pid in alive(recipe.folder):
        os.kill(pid, signal.SIGKILL)
    recipe.script(SLOW.replace("sleep 321 & sleep 321", "true"), "lr=1 # x")
    assert ran(recipe.run()) == [2]


def test_killed_rerun_of_a_finished_stage_does_not_count(three):
    three.run()
    three.script(THREE.replace('echo "second', 'kill -9 $BASHPID; echo "second'), OPTIONS)
    assert "stage 2: failed" in three.run("--stage", "2", code=1)
    three.script(THREE, OPTIONS)
    assert ran(three.run()) == [2, 10]


def test_a_stage_beyond_the_last_is_named(recipe):
    recipe.script("stage_1() {\n  stage T\n}\nstage_2() {\n  stage U\n}")
    assert "there is no stage 3; the last is 2" in recipe.run("--stage", "3", code=1)
    assert "stage 2: done" in recipe.run("--stage", "2")

"""Job back end, preemption and processes on a real SLURM; skipped with the reason where there is none."""

import json
import multiprocessing
import re
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch._dynamo  # noqa: F401, which the optimiser would import anew in each process
from safetensors.torch import load_file

from moe_asr.config import load_config, save_config
from moe_asr.training.run import RunConfig, train

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ["commonvoice/asr1", "kespeech/asr_llm1", "librispeech/asr1", "tedlium3/asr1"]

RECIPE = """#!/usr/bin/env bash
# Stages that submit jobs.
. "$(dirname "$0")/path.sh"
languages="be ca cs"
stage_1() {
  stage "Prepare each language" outputs data
  mkdir -p data
  tr ' ' '\\n' <<<"$languages" >data/languages
  $train_cmd JOB=1:3 exp/log/prepare.JOB.log bash -c '
    l=$(sed -n JOBp data/languages); echo $l >data/JOB; [ $l != "${FAILS-}" ]'
}
stage_2() {
  stage "Train on all" inputs data outputs exp/all
  $train_cmd exp/log/train.log bash -c 'cat data/1 data/2 data/3 | paste -sd " " >exp/all'
}
run_stages
"""

TRAINING = """
import os, time
from pathlib import Path
from moe_asr.config import run_command
from moe_asr.signals import StopSignals
from moe_asr.training.run import RunConfig, train
from moe_asr.training.update import Updater
call, note, count = Updater.__call__, StopSignals._note, [0]
def waiting(self, *args):
    count[0] += 1
    if count[0] == 4 and os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
        Path("waiting").touch()
        while not Path("signalled").exists():
            time.sleep(0.05)
    return call(self, *args)
def noting(self, number, frame):
    note(self, number, frame)
    Path("signalled").write_text(str(number))
Updater.__call__, StopSignals._note = waiting, noting
run_command(RunConfig, train)
"""


def call(slurm, folder, *command, code=0):
    done = subprocess.run(list(map(str, command)), cwd=folder, env=slurm, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def wait_for(condition, process):
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)


@pytest.fixture
def recipe(tmp_path):
    """A recipe in a toolkit of its own, with the real utils/."""
    folder = tmp_path / "egs/corpus/asr1"
    (folder / "conf").mkdir(parents=True)
    (tmp_path / "tools").mkdir()
    (tmp_path / "utils").symlink_to(ROOT / "utils")
    (tmp_path / "tools/setup.sh").write_text("#!/bin/sh\n")
    (folder / "path.sh").write_text('. "$(dirname "${BASH_SOURCE[0]}")/../../../utils/recipe.sh"\n')
    (folder / "cmd.sh").write_text("train_cmd=slurm.sh\n")
    (folder / "run.sh").write_text(RECIPE)
    for script in (tmp_path / "tools/setup.sh", folder / "run.sh"):
        script.chmod(0o755)
    return folder


def test_arrays_and_stages_that_depend_on_each_other(slurm, recipe):
    call(slurm, recipe, "./run.sh")
    assert (recipe / "exp/all").read_text() == "be ca cs\n"
    for job, language in enumerate(("be", "ca", "cs"), 1):
        assert (recipe / f"data/{job}").read_text() == f"{language}\n"
        assert "# Ended (code 0)" in (recipe / f"exp/log/prepare.{job}.log").read_text()
    assert call(slurm, recipe, "./run.sh").count("done already") == 2


def test_one_job_that_fails_stops_the_recipe_with_the_end_of_its_log(slurm, recipe):
    error = call({**slurm, "FAILS": "ca"}, recipe, "./run.sh", code=1)
    assert "slurm.sh: 1 of 3 jobs failed (2); end of exp/log/prepare.2.log:" in error
    assert "# Ended (code 1) at" in error and "stage 1: failed" in error
    assert not (recipe / "exp/all").exists() and not (recipe / "exp/log/train.log").exists()


def configuration(corpus, exp_dir, **changes):
    path = exp_dir.parent / "run.yaml"
    path.write_text((corpus / "lora.yaml").read_text() + f"exp_dir: {exp_dir}\n")
    found = load_config(RunConfig, path)
    found = replace(found, train=replace(found.train, log_every=1, **changes))
    save_config(found, path)
    return found


def outcome(exp_dir):
    """Losses and the adaptation."""
    records = [json.loads(line) for line in (Path(exp_dir) / "metrics.jsonl").read_text().splitlines()]
    trace = [{k: v for k, v in r.items() if "seconds" not in k} for r in records]
    return trace, load_file(Path(exp_dir) / "final/adapter/adapter.safetensors")


def assert_as_undisturbed(config, folder):
    whole = replace(config, exp_dir=str(folder / "undisturbed"))
    process = multiprocessing.get_context("fork").Process(target=train, args=(whole,))
    process.start()
    process.join()
    (trace, weights), (same_trace, same) = outcome(whole.exp_dir), outcome(config.exp_dir)
    assert trace == same_trace and all(torch.equal(tensor, same[name]) for name, tensor in weights.items())


@pytest.mark.parametrize(
    ("how", "received", "code"),
    [(["scontrol", "requeue"], "15", 143), (["scancel", "--batch", "--signal=USR1"], "10", 138)],
)
def test_training_that_is_preempted_ends_as_if_it_had_not_been(slurm, corpus, tmp_path, how, received, code):
    """By a scheduler that takes its node, and by the signal before its time limit."""
    config = configuration(corpus, tmp_path / "run")
    (tmp_path / "training.py").write_text(TRAINING)
    command = ["slurm.sh", "--time", "30", "train.log", "python3", "training.py", "--config", "run.yaml"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=tmp_path, env=slurm, **pipes)
    wait_for((tmp_path / "waiting").exists, process)
    job = (tmp_path / "q/train.id").read_text().strip()
    call(slurm, tmp_path, *how, job)

    out, err = process.communicate()
    assert process.returncode == 0, out + err
    assert (tmp_path / "signalled").read_text() == received
    assert f"# Ended (code {code})" in (tmp_path / "train.log.1").read_text()
    assert "going on from step-00000004" in (tmp_path / "train.log").read_text()
    assert_as_undisturbed(config, tmp_path)


def test_slurm_warns_before_a_time_limit(slurm, tmp_path):
    """At its own time: at the latest half a minute after it is due."""
    work = 'trap "touch saved; exit 138" USR1; [ ! -e saved ] || exit 0; for i in $(seq 1200); do sleep 0.1; done'
    process = subprocess.Popen(
        ["slurm.sh", "--time", "2", "--config", "conf", "x.log", "bash", "-c", work], cwd=tmp_path, env=slurm
    )
    (tmp_path / "conf").write_text("--signal=B:USR1@110\n")
    assert process.wait() == 0
    assert "# Ended (code 138)" in (tmp_path / "x.log.1").read_text()
    assert "# Ended (code 0)" in (tmp_path / "x.log").read_text()


def test_the_template_of_the_recipes_trains_with_two_processes(slurm, corpus, recipe):
    config = configuration(corpus, recipe / "exp", accumulate=2)
    (recipe / "conf/train.sbatch").write_text((ROOT / "egs" / RECIPES[0] / "conf/train.sbatch").read_text())
    here = ["--gres=none", "--ntasks-per-node=2", "--cpus-per-task=1", "--output=train.log"]
    call(slurm, recipe, "sbatch", "--wait", *here, "conf/train.sbatch", "--config", "run.yaml")
    log = (recipe / "train.log").read_text()
    for rank in range(2):
        assert re.search(rf"rank {rank} of 2 on \S+, GPU none, meeting at \S+:\d+ \(job \d+, start 1\)", log)
    assert log.count("done after 6 updates") == 1
    assert_as_undisturbed(config, recipe)


def test_templates_differ_in_their_example_alone():
    texts = [(ROOT / "egs" / name / "conf/train.sbatch").read_text() for name in RECIPES]
    assert len({re.sub(r"--config conf/\w+.yaml --exp_dir exp/\w+", "", text) for text in texts}) == 1
    for name, text in zip(RECIPES, texts):
        assert (ROOT / "egs" / name / re.search(r"conf/\w+\.yaml", text)[0]).is_file()


def test_what_cannot_start_says_why(tmp_path):
    for name in ("bash", "id", "paste"):
        (tmp_path / name).symlink_to(shutil.which(name))
    script = [shutil.which("bash"), ROOT / "tools/slurm_local.sh", "true"]
    done = subprocess.run(script, env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 3 and done.stderr.count("\n") == 1
    assert "SLURM is not installed (no " in done.stderr or "need root" in done.stderr

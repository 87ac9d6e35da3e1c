import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from moe_asr.config import load_config, run_command
from moe_asr.data.batches import DataConfig
from moe_asr.models.interface import Model
from moe_asr.training import each
from moe_asr.training.loop import Trainer
from moe_asr.training.run import RunConfig, train

RUN_SH = Path(__file__).resolve().parents[2] / "utils" / "run.sh"


def options(corpus, names, exp_dir):
    (exp_dir / "names").write_text("\n".join(names))
    return ["--config", f"{corpus}/lora.yaml", "--exp_dir", f"{exp_dir}/{{name}}", "--data.speaker", "{name}",
            "--valid.speaker", "{name}", "--names", f"{exp_dir}/names"]  # fmt: skip


def run(arguments, *more, code=0):
    if not code:
        return run_command(each.EachConfig, each.train_each, [*arguments, *more])
    with pytest.raises(SystemExit) as stop:
        run_command(each.EachConfig, each.train_each, [*arguments, *more])
    assert stop.value.code == code


def weights(folder):
    return (folder / "final/adapter/adapter.safetensors").read_bytes()


def test_each_run_is_the_run_of_train(corpus, tmp_path, monkeypatch, capsys):
    """Bit for bit, whatever ran before it in the process; and the base of the run before is no longer in memory."""
    models = []

    def counted(config):
        models.append(sum(issubclass(type(thing), Model) for thing in gc.get_objects()))
        return train(config)

    monkeypatch.setattr(each, "train", counted)
    gc.collect()
    gc.disable()  # it may not come by chance
    try:
        run(options(corpus, ["s0", "s2"], tmp_path))
    finally:
        gc.enable()
    out, err = capsys.readouterr()
    assert [line.split(":")[0] for line in out.splitlines()] == ["s0", "s2"] and err == ""
    assert "4 updates, best validation loss " in out and out.splitlines()[0].endswith(" s")
    assert models[1] == models[0]
    alone = ["--config", f"{corpus}/lora.yaml", "--exp_dir", f"{tmp_path}/alone", "--data.speaker", "s2"]
    run_command(RunConfig, train, [*alone, "--valid.speaker", "s2"])
    assert weights(tmp_path / "s2") == weights(tmp_path / "alone") != weights(tmp_path / "s0")
    told = (tmp_path / "s2/train.log").read_text()
    assert told == (tmp_path / "alone/train.log").read_text() and "done after 4 updates" in told
    assert load_config(RunConfig, tmp_path / "s2/config.yaml").data.speaker == "s2"


def test_a_name_goes_into_every_string():
    config = each.EachConfig(
        exp_dir="exp/{name}",
        data=DataConfig(manifests=["a-{name}", "b"], speaker="{name}"),
        valid=DataConfig(speed_factors=(0.9, 1.0)),
        init=".*{1,2}{name}",
        names="x",
    )
    one = each.one_run(config, "anna")
    assert type(one) is RunConfig and one.exp_dir == "exp/anna" and one.init == ".*{1,2}anna"
    assert one.data.manifests == ["a-anna", "b"] and one.data.speaker == "anna" and one.valid == config.valid


def test_a_failed_run_does_not_keep_the_others_from_theirs(corpus, tmp_path, capsys):
    (tmp_path / "s2").mkdir()
    (tmp_path / "s2/checkpoints").write_text("a file in the way")
    run(options(corpus, ["anna", "s1", "s2"], tmp_path), code=1)
    out, err = capsys.readouterr()
    assert [line.split(": ")[:2][-1].split(",")[0] for line in out.splitlines()] == ["failed", "4 updates", "failed"]
    assert (tmp_path / "s1/final").is_dir()
    [line] = err.splitlines()
    assert line.startswith("error: 2 of 3 runs failed: anna (") and "no utterance of speaker anna" in line
    assert "; s2 (" in line and f"{tmp_path}/s2/checkpoints" in line


def test_a_reason_that_is_the_same_for_all_is_told_once(corpus, tmp_path, capsys):
    run(options(corpus, ["s0", "s1"], tmp_path), "--init", "nowhere", code=1)
    assert capsys.readouterr().err == "error: 2 of 2 runs failed: s0, s1 (no model folder at nowhere)\n"


def test_a_signal_ends_all_and_the_same_command_goes_on(corpus, tmp_path, monkeypatch, capsys):
    update = Trainer._update

    def stopped(self, batches):
        update(self, batches)
        os.kill(os.getpid(), signal.SIGTERM)

    arguments = options(corpus, ["s0", "s1"], tmp_path)
    monkeypatch.setattr(Trainer, "_update", stopped)
    run(arguments, code=143)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["names", "s0"]
    monkeypatch.setattr(Trainer, "_update", update)
    run(arguments)
    assert "going on from step-00000001" in (tmp_path / "s0/train.log").read_text()
    run(options(corpus, ["s0", "s1"], tmp_path))
    assert "done after 4 updates" in (tmp_path / "s1/train.log").read_text()
    monkeypatch.setattr(Trainer, "_update", None)  # nothing is left to do
    run(arguments)
    assert capsys.readouterr().err == ""


def test_as_a_job_array(corpus, tmp_path):
    """Every name is one job's, and the job with a failed run is named with its reason."""
    command = [sys.executable, "-m", "moe_asr.bin.train_each", "--job", "JOB", "--num_jobs", "2"]
    command += options(corpus, ["s0", "anna", "s1", "# s2"], tmp_path)
    log = f"{tmp_path}/log/each.JOB.log"
    done = subprocess.run([RUN_SH, "JOB=1:2", log, *command], capture_output=True, text=True)
    assert done.returncode == 1 and "1 of 2 jobs failed (2)" in done.stderr
    assert "error: 1 of 1 runs failed: anna (" in done.stderr
    assert [(tmp_path / name / "final").is_dir() for name in ("s0", "s1", "s2")] == [True, True, False]
    logs = [Path(log.replace("JOB", job)).read_text().splitlines() for job in "12"]
    assert [[line.split(":")[0] for line in log if line.startswith(("s", "anna:"))] for log in logs] == [
        ["s0", "s1"],
        ["anna"],
    ]


def test_more_jobs_than_names(corpus, tmp_path, capsys):
    run(options(corpus, ["s0"], tmp_path), "--job", "3", "--num_jobs", "3")
    assert capsys.readouterr().out == "nothing to do for job 3 of 3: there is 1 name\n"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--job", "3", "--num_jobs", "2"], "job is 3; it must be from 1 to num_jobs, 2"),
        (["--job", "0"], "job is 0"),
        (["--exp_dir", "exp/all"], "exp_dir must contain {name}"),
        (["--names", "nowhere.txt"], "no list of speakers at nowhere.txt"),
    ],
)
def test_bad_options_are_one_line(corpus, tmp_path, capsys, more, says):
    run(options(corpus, ["s0"], tmp_path), *more, code=1)
    err = capsys.readouterr().err
    assert says in err and len(err.splitlines()) == 1


def test_a_name_that_is_no_folder_name(corpus, tmp_path, capsys):
    run(options(corpus, ["s0", "../s1"], tmp_path), code=1)
    assert "names '../s1', which cannot be part of a folder's name" in capsys.readouterr().err
    assert not (tmp_path / "s0").exists()

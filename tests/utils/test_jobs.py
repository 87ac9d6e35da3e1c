import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

UTILS = Path(__file__).resolve().parents[2] / "utils"

SBATCH = """#!/usr/bin/env bash
# An sbatch that runs the tasks of an array here and now.
printf '%s\\n' "$@" >sbatch.args
echo "42;cluster"
for word in "$@"; do case $word in --array=*) range=${word#--array=} ;; esac; done
range=${range%%%*} script=$(realpath "${!#}") code=0
for SLURM_ARRAY_TASK_ID in $(seq "${range%-*}" "${range#*-}"); do
  export SLURM_ARRAY_TASK_ID
  (cd / && bash "$script") >"$script.$SLURM_ARRAY_TASK_ID.out" 2>&1 || code=1
done
exit $code
"""


class BackEnd:
    def __init__(self, name: str, folder: Path):
        self.name, self.folder = name, folder
        self.env = {**os.environ, "PATH": f"{folder}/bin:{os.environ['PATH']}"}
        self.script("sbatch", SBATCH)
        self.script("squeue", "#!/bin/sh\necho 'slurm_load_jobs error: Invalid job id specified' >&2\nexit 1\n")

    def script(self, name: str, text: str) -> None:
        path = self.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def start(self, *args: str) -> subprocess.Popen:
        command = [str(UTILS / self.name), *args]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=self.folder, env=self.env, start_new_session=True, **pipes)

    def __call__(self, *args: str, code: int = 0) -> str:
        process = self.start(*args)
        out, err = process.communicate(timeout=60)
        assert process.returncode == code and out == "", out + err
        return err

    def read(self, name: str) -> str:
        return (self.folder / name).read_text()


@pytest.fixture
def local(tmp_path) -> BackEnd:
    return BackEnd("run.sh", tmp_path)


@pytest.fixture(params=["run.sh", "slurm.sh"])
def back_end(request, tmp_path) -> BackEnd:
    folder = tmp_path / "a folder"
    folder.mkdir()
    return BackEnd(request.param, folder)


def test_log(back_end):
    assert back_end("exp/log/x.log", "bash", "-c", "echo out; echo err >&2") == ""
    log = re.compile(
        r"# bash -c echo\\ out.*\n# Running on \S+\n# Started at .*\n#\nout\nerr\n"
        r"# Accounting: time=\d+ threads=1\n# Ended \(code 0\) at .*, elapsed time \d+ seconds\n"
    )
    assert log.fullmatch(back_end.read("exp/log/x.log"))


def test_array(back_end):
    assert back_end("JOB=2:4", "log/x.JOB.log", "echo", "part-JOB of JOB") == ""
    assert sorted(path.name for path in (back_end.folder / "log").glob("*.log")) == ["x.2.log", "x.3.log", "x.4.log"]
    for job in (2, 3, 4):
        assert f"\npart-{job} of {job}\n" in back_end.read(f"log/x.{job}.log")
    back_end("N=1", "log/N/y.log", "echo", "N JOB")
    assert "\n1 JOB\n" in back_end.read("log/1/y.log")
    back_end("z.log", "echo", "JOB")
    assert "\nJOB\n" in back_end.read("z.log")


ARGUMENTS = ["a b", "$(touch bad)", "`touch bad`", "; touch bad", "'", '"', "*", "\\", "", "a\nb", "| touch bad", "ü"]


def test_arguments_arrive_as_they_are(back_end):
    back_end("JOB=1:1", "x.JOB.log", "python3", "-c", "import sys; print(ascii(sys.argv[1:]))", *ARGUMENTS)
    assert f"\n{ascii(ARGUMENTS)}\n" in back_end.read("x.1.log")
    assert not (back_end.folder / "bad").exists()


def test_failure(back_end):
    back_end.env["MOE_ASR_FAILURE"] = str(back_end.folder / "failure")
    err = back_end("JOB=1:4", "x.JOB.log", "bash", "-c", "echo job JOB; [ $((JOB % 2)) = 1 ]", code=1)
    assert err.startswith(f"{back_end.name}: 2 of 4 jobs failed (2 4); end of x.2.log:\n")
    assert "\n  job 2\n" in err and "\n  # Ended (code 1) at" in err
    assert back_end.read("failure") == "(log: x.2.log)\n"
    assert "code 127" in back_end("x.log", "no_such_command", code=1)


def test_log_of_an_earlier_success_does_not_count(back_end):
    command = ["x.log", "bash", "-c", 'if [ -e started ]; then kill -9 "$PPID"; fi; touch started']
    back_end(*command)
    assert back_end(*command, code=1).startswith(f"{back_end.name}: 1 of 1 jobs failed; end of x.log")


@pytest.mark.parametrize(
    "args, says",
    [
        (["--meme", "4G", "x.log", "true"], "unknown option --meme"),
        (["--mem"], "--mem needs a value"),
        (["--gpu", "one", "x.log", "true"], "take numbers"),
        (["x.log"], "a log and a command are needed"),
        (["JOB=3:1", "x.JOB.log", "true"], "no jobs in 3:1"),
        (["JOB=1:3", "x.log", "true"], "JOB must occur in the name of the log"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(back_end, args, says):
    err = back_end(*args, code=2)
    assert says in err and err.count("\n") == 1


@pytest.mark.parametrize("most", [1, 2, 5])
def test_max_jobs_run(local, most):
    count = "touch at.JOB; set -- at.*; echo $#; sleep 0.2; rm at.JOB"
    local("--max-jobs-run", str(most), "--mem", "1G", "--gpu", "1", "JOB=1:5", "x.JOB.log", "bash", "-c", count)
    at_once = [int(local.read(f"x.{job}.log").splitlines()[4]) for job in range(1, 6)]
    assert max(at_once) <= most and (most == 1 or max(at_once) > 1)


def test_interrupted_alone(local):
    process = local.start("JOB=1:2", "x.JOB.log", "bash", "-c", "touch started.JOB; exec sleep 321")
    while not all((local.folder / f"started.{job}").exists() for job in (1, 2)):
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(timeout=10) == 130
    deadline = time.time() + 10
    while "321" in subprocess.run(["ps", "-o", "args=", "-s", str(process.pid)], text=True, stdout=-1).stdout:
        assert time.time() < deadline
        time.sleep(0.05)


@pytest.fixture
def slurm(tmp_path) -> BackEnd:
    return BackEnd("slurm.sh", tmp_path)


def test_slurm_options(slurm):
    options = ["--mem", "4G", "--time", "1:00:00", "--gpu", "2", "--num-threads", "3", "--max-jobs-run", "4"]
    (slurm.folder / "conf").mkdir()
    (slurm.folder / "conf/slurm.conf").write_text("# ours\n\n--partition=long\n--account=a b\n")
    slurm(*options, "JOB=1:5", "log/x.JOB.log", "true")
    given = slurm.read("sbatch.args").splitlines()
    resources = ["--cpus-per-task=3", "--array=1-5%4", "--mem=4G", "--time=1:00:00", "--gres=gpu:2"]
    asked = ["--parsable", "--wait", "--requeue", "--signal=B:USR1@90"]
    assert given[:11] == [*asked, *resources, "--partition=long", "--account=a b"]
    assert given[11:] == ["--job-name=x", "--output=log/q/x.%a.out", "log/q/x.sh"]
    assert "threads=3" in slurm.read("log/x.5.log")


def test_slurm_jobs_that_never_ran(slurm):
    slurm.script("sbatch", "#!/bin/sh\necho 'sbatch: error: no such partition' >&2\nexit 1\n")
    err = slurm("JOB=1:2", "x.JOB.log", "true", code=1)
    assert "no such partition" in err and "slurm.sh: 2 of 2 jobs failed (1 2)" in err


def test_slurm_interrupted_cancels_the_jobs(slurm):
    slurm.script("sbatch", '#!/bin/sh\necho "42;cluster"\ntouch submitted\nexec sleep 30\n')
    slurm.script("scancel", '#!/bin/sh\necho "$@" >cancelled\n')
    process = slurm.start("JOB=1:2", "x.JOB.log", "true")
    while not (slurm.folder / "submitted").exists():
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=10) == 130 and slurm.read("cancelled") == "42\n"
    os.killpg(process.pid, signal.SIGKILL)


def test_slurm_jobs_that_sbatch_takes_for_ended_are_waited_for(slurm):
    """As it does when it looks at a job that is being queued again; the controller may be busy then, too."""
    slurm.script("sbatch", "#!/bin/sh\necho '42;cluster'\nexit 1\n")
    slurm.script(
        "squeue",
        """#!/bin/sh
        echo "$@" >>asked
        case $(wc -l <asked) in
          1 | 3) echo " 42 all x root CG" ;;
          2 | 5) true ;;
          4 | 6) echo "slurm_load_jobs error: Invalid job id specified" >&2 && exit 1 ;;
          7) echo "slurm_load_jobs error: Socket timed out on send/recv operation" >&2 && exit 1 ;;
          *) echo " 42 all x root R" && echo "# Ended (code 0)" >x.log ;;
        esac""",
    )
    slurm("x.log", "true")
    assert slurm.read("asked").splitlines() == ["--noheader --jobs=42"] * 8


def test_slurm_jobs_that_are_not_in_the_queue_any_more_have_failed(slurm):
    slurm.script("sbatch", "#!/bin/sh\necho '42;cluster'\nexit 1\n")
    slurm.script("squeue", "#!/bin/sh\necho >>asked\n")
    assert "1 of 1 jobs failed" in slurm("x.log", "true", code=1) and slurm.read("asked") == "\n" * 5


SAVES = """trap 'touch saved.JOB; exit 138' USR1; [ ! -e saved.JOB ] || exit 0
touch started.JOB; while :; do sleep 0.1; done"""


def wait_until_started(back_end, process, jobs):
    while not all((back_end.folder / f"started.{job}").exists() for job in jobs):
        assert process.poll() is None
        time.sleep(0.02)


def test_the_signal_before_a_time_limit_reaches_the_jobs(local):
    process = local.start("JOB=1:2", "x.JOB.log", "bash", "-c", SAVES)
    wait_until_started(local, process, (1, 2))
    os.kill(process.pid, signal.SIGUSR1)
    assert process.wait(timeout=10) == 138
    assert all("# Ended (code 138)" in local.read(f"x.{job}.log") for job in (1, 2))


def test_slurm_queues_a_job_again_that_was_stopped_and_saved(slurm):
    """And keeps the log of the first start."""
    slurm.env["SLURM_ARRAY_JOB_ID"] = "42"
    slurm.script("scontrol", '#!/bin/sh\necho "$@" >>requeued\nkill $PPID\n')
    process = slurm.start("JOB=3", "x.JOB.log", "bash", "-c", SAVES)
    wait_until_started(slurm, process, (3,))
    name = f"^bash {slurm.folder.resolve()}/q/x.sh$"
    [script] = subprocess.run(["pgrep", "-s", str(process.pid), "-f", name], text=True, stdout=-1).stdout.split()
    os.kill(int(script), signal.SIGUSR1)
    process.communicate(timeout=20)
    assert slurm.read("requeued") == "requeue 42_3\n" and "# Ended (code 138)" in slurm.read("x.3.log")
    first = slurm.read("x.3.log")
    command = [slurm.folder / "q/x.sh"]
    env = {**slurm.env, "SLURM_RESTART_COUNT": "1", "SLURM_ARRAY_TASK_ID": "3"}
    assert subprocess.run(["bash", *command], env=env).returncode == 0
    assert slurm.read("x.3.log.1") == first and "# Ended (code 0)" in slurm.read("x.3.log")

import json
import subprocess
import sys
from datetime import datetime

import pytest

from moe_asr import __version__, provenance


@pytest.fixture
def repository(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (tmp_path / "egs").mkdir()
    (tmp_path / "egs" / "RESULTS.md").write_text("old")
    (tmp_path / "code.py").write_text("old")
    git("add", ".")
    git("commit", "-m", "first")
    return tmp_path


def test_git_hash_is_that_of_the_commit(repository):
    command = ["git", "rev-parse", "HEAD"]
    head = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True).stdout.strip()
    clean = provenance.git_hash(repository / "egs")
    assert len(clean) >= 7 and head.startswith(clean)


def test_git_hash_is_dirty_when_code_changed_but_not_when_results_did(repository):
    clean = provenance.git_hash(repository)
    (repository / "egs" / "RESULTS.md").write_text("new")
    assert provenance.git_hash(repository) == clean
    (repository / "code.py").write_text("new")
    assert provenance.git_hash(repository) == provenance.git_hash(repository / "egs") == f"{clean}-dirty"


def test_git_hash_outside_git_and_without_git(tmp_path, monkeypatch):
    assert provenance.git_hash(tmp_path) == "unknown"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.git_hash() == "unknown"


def test_command_line_of_a_module_and_of_a_script(tmp_path):
    (tmp_path / "tell.py").write_text("from moe_asr.provenance import command_line\nprint(command_line())\n")
    for how, expected in ((["-m", "tell"], "python -m tell"), ([str(tmp_path / "tell.py")], "tell.py")):
        command = [sys.executable, *how, "--name", "two words"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stdout == f"{expected} --name 'two words'\n"


def test_record_is_json_and_imports_nothing_heavy():
    code = "import json, sys; from moe_asr.provenance import record; print(json.dumps(record()))"
    code += "; assert not {'torch', 'numpy', 'lhotse'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    record = json.loads(done.stdout)
    assert set(record) == {"command", "git", "versions", "date"}
    assert record["versions"]["moe_asr"] == __version__
    assert record["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert datetime.fromisoformat(record["date"]).tzinfo is not None

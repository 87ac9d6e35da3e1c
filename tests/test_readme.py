"""What the README says is there and works."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_snippet_runs(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert sorted(p.name for p in (tmp_path / "my_adapter").iterdir()) == ["adapter.json", "adapter.safetensors"]
    assert type(names["merged"].model.encoder.layers[0].self_attn.q_proj).__name__ == "Linear"


def test_paths_exist():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    commands = re.findall(r"\./((?:egs|tools|utils)/[\w./-]+)", README)
    assert links and commands
    assert not [path for path in links + commands if not (ROOT / path).exists()]


def test_every_recipe_is_listed_and_whole():
    recipes = [path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("egs/*/*/run.sh")]
    assert recipes
    for recipe in recipes:
        assert f"]({recipe})" in README, recipe
        assert (ROOT / recipe / "run.sh").stat().st_mode & 0o100 and (ROOT / recipe / "path.sh").is_file()
        assert (ROOT / recipe / "RESULTS.md").is_file(), f"{recipe} has no measured results"
        assert f"]({recipe}/RESULTS.md)" in (ROOT / "RESULTS.md").read_text(encoding="utf-8")

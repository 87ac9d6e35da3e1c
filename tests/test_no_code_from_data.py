"""Nothing that is read from disk becomes code: no pickle, no eval, no YAML tags, no shell, no code of checkpoints."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [p for name in ("moe_asr", "egs", "tools") for p in (ROOT / name).rglob("*.py") if "venv" not in p.parts]
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
CALLS = {"eval", "exec", "compile", "__import__"}  # as functions of Python's own, not as methods
METHODS = {
    "torch.load": "unpickles",
    "torch.hub.load": "runs code that it fetches",
    "torch.jit.load": "unpickles",
    "yaml.load": "makes any objects; safe_load does not",
    "yaml.load_all": "makes any objects",
    "yaml.unsafe_load": "makes any objects",
    "yaml.full_load": "makes any objects",
    "os.system": "goes through a shell",
    "os.popen": "goes through a shell",
    "subprocess.getoutput": "goes through a shell",
    "subprocess.getstatusoutput": "goes through a shell",
    "pandas.read_pickle": "unpickles",
}


def findings(source: str, name: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            found += [f"imports {module}" for module in names if module.split(".")[0] in MODULES]
        elif isinstance(node, ast.Call):
            found += call_findings(node)
        elif isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "trust_remote_code", "shell"):
            if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                found.append(f"{node.arg}={ast.unparse(node.value)}")
    return [f"{name}: {each}" for each in found]


def call_findings(call: ast.Call) -> list[str]:
    name = ast.unparse(call.func)
    given = {keyword.arg for keyword in call.keywords}
    if name in CALLS or name in METHODS:
        return [f"{name}: {METHODS.get(name, 'runs code')}"]
    if name in ("np.load", "numpy.load") and "allow_pickle" not in given:
        return [f"{name} without allow_pickle=False"]
    # `transformers` runs code that lies beside weights when told so; it is told the contrary in every place
    if (
        name.startswith("Auto")
        and name.endswith((".from_pretrained", ".from_config"))
        and "trust_remote_code" not in given
    ):
        return [f"{name} without trust_remote_code=False"]
    return []


def test_no_source_makes_code_of_data():
    assert len(SOURCES) > 100
    assert not [each for path in SOURCES for each in findings(path.read_text("utf-8"), str(path.relative_to(ROOT)))]


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=True)",  # safe since torch 2.6 as far as is known; not needed here
        "yaml.load(text, Loader=yaml.SafeLoader)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "eval(text)",
        "subprocess.run(line, shell=True)",
        "AutoModel.from_pretrained(name)",
        "AutoModel.from_pretrained(name, trust_remote_code=trusted)",
    ],
)
def test_each_is_found(source):
    assert findings(source, "a.py")


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "yaml.safe_load(text)",
        "np.load(path, allow_pickle=False)",
        "re.compile(text)",
        "json.loads(text)",
    ],
)
def test_these_are_not(source):
    assert not findings(source, "a.py")


def test_pickled_tags_in_configurations_are_refused(tmp_path):
    from moe_asr.config import load_config
    from moe_asr.data.checks import CheckConfig
    from moe_asr.errors import UserError

    (tmp_path / "c.yaml").write_text(f"min_duration: !!python/object/apply:os.mkdir ['{tmp_path}/made']\n")
    with pytest.raises(UserError, match="c.yaml:1 is no YAML"):
        load_config(CheckConfig, tmp_path / "c.yaml")
    assert not (tmp_path / "made").exists()

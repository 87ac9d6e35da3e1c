"""The house keeps its order: a floor imports only floors below it, and files stay small."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "moe_asr"
FLOORS = {"bin": 4, "training": 3, "decoding": 3, "methods": 2, "models": 1}
FLOORS |= dict.fromkeys(("experts", "data", "scoring", "quant", "losses"), 0)


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    return names


def test_floors():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0]
        for name in imported(path):
            other = name.split(".")[1] if name.startswith("moe_asr.") else None
            if room in FLOORS and other in FLOORS and other != room and FLOORS[other] >= FLOORS[room]:
                if (room, other) != ("scoring", "data"):  # the normalisers
                    wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_experts_stand_alone():
    allowed = {"config", "errors", "files", "strict_json", "experts"}
    used = {
        n.split(".")[1] for p in (PACKAGE / "experts").glob("*.py") for n in imported(p) if n.startswith("moe_asr.")
    }
    assert used <= allowed


def test_files_stay_small():
    sources = [*PACKAGE.rglob("*.py"), *ROOT.glob("egs/*/*/local/*.py"), *ROOT.glob("tools/bench/*.py")]
    long = {
        str(p.relative_to(ROOT)): n for p in sources if (n := len(p.read_text(encoding="utf-8").splitlines())) > 320
    }
    assert not long


@pytest.mark.parametrize("command", ["prepare", "tokens", "lang", "score", "results", "transcribe", "adapter"])
def test_commands_without_torch_do_not_import_it(command):
    code = (
        "import sys\n"
        f"sys.argv = ['{command}', '--help']\n"
        "import runpy\n"
        "try:\n"
        f"    runpy.run_module('moe_asr.bin.{command}', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code, stop.code\n"
        "assert not {'torch', 'lhotse', 'transformers', 'matplotlib'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)

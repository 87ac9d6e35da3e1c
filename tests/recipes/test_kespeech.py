"""The recipe of an LLM-based recogniser for KeSpeech: all stages on its miniature, and what it says about bad input."""

import functools
import hashlib
import importlib.util
import json
import re
import subprocess
import sys
import tarfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from moe_asr.config import parse_config
from moe_asr.decoding.run import DecodeConfig
from moe_asr.errors import UserError
from moe_asr.models.speech_llm_import import ImportConfig
from moe_asr.training.run import RunConfig

ROOT = Path(__file__).resolve().parents[2]
KESPEECH = ROOT / "egs/kespeech/asr_llm1"
SMALL = "--miniature=--train 10 --dev 3 --test 3 --general_train 24 --general_dev 4 --general_test 4 --speakers 2"
SHORT = "--train.max_steps 3 --train.average_count 1"
SYSTEMS = "full hdmole hdmole_oracle"


def run(folder, *options, training=SHORT, systems=SYSTEMS):
    for name in ("espeakng_loader", "transformers", "opencc"):
        pytest.importorskip(name)
    done = subprocess.run(
        [KESPEECH / "run.sh", "--mini", "true", "--nj", "1", "--data-dir", folder / "data", "--exp-dir", folder / "exp",
         SMALL, f"--training={training}", f"--lm-training={SHORT}", "--systems", systems, *options],
        capture_output=True, text=True, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kespeech")
    return folder, run(folder)


def test_miniature_runs_whole(mini):
    folder, output = mini
    for number in range(1, 10):
        assert f"stage {number}: done in" in output
    assert "rejected 2 (" in output and "units on the development set" in output and "accuracy" in output
    lines = (folder / "exp/RESULTS.md").read_text(encoding="utf-8").splitlines()
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
    names = ["no adaptation", "full projector fine-tuning", "HDMoLE (our reading)", "HDMoLE with the true accent"]
    assert [row[0] for row in table[2:6]] == names
    accents = ["Jiang-Huai", "Jiao-Liao", "Mandarin", "Southwestern", "accents pooled", "AISHELL-1"]
    assert table[0][1:7] == accents and {"trainable", "trainable %", "active experts"} <= set(table[0])
    rows = {row[0]: dict(zip(table[0], row)) for row in table[2:6]}
    assert [rows[name]["trainable %"] for name in names[:2]] == ["0.00", "100.00"]
    assert 0 < float(rows[names[2]]["trainable %"]) < 100 and 1 <= float(rows[names[2]]["active experts"]) <= 5


def test_pictures_and_reports_are_there(mini):
    folder, _ = mini
    for name in ("weights", "thresholds", "active_experts"):
        assert (folder / f"exp/hdmole/routing/{name}.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "exp/hdmole/test/routing.png").is_file()
    assert (folder / "exp/accent/test/confusion.png").is_file()


def test_the_frozen_parts_are_stored_once(mini):
    folder, _ = mini
    frozen = {
        (folder / "exp" / name / "frozen.safetensors").stat().st_ino for name in ("init", "base/final", "full/final")
    }
    assert len(frozen) == 1


def test_the_oracle_decodes_with_the_true_accent_what_hdmole_has_learned(mini):
    folder, _ = mini
    decodes = [folder / "exp" / name / "test" for name in ("hdmole", "hdmole_oracle")]
    adapters = [json.loads((decode / "system.json").read_text())["adapter"] for decode in decodes]
    assert adapters == [str(folder / "exp/hdmole/final")] * 2
    settings = [json.loads((decode / "decode.json").read_text()) for decode in decodes]
    assert settings[0].pop("global_route") is None and settings[1].pop("global_route") == "label"
    assert settings[0] == settings[1]


def test_a_finished_recipe_runs_again_in_no_time(mini):
    folder, _ = mini
    assert run(folder).count("done already, nothing changed") == 9


def test_one_more_system_is_trained_alone_and_starts_from_single_accents(mini):
    folder, _ = mini
    output = run(folder, systems=f"{SYSTEMS} hdmole_started")
    assert output.count("done already") == 5 and output.count("decoded already") == 4
    loras = [
        folder / "exp/accent_lora" / accent / "final" for accent in (folder / "data/accents.txt").read_text().split()
    ]
    assert len(loras) == 5 and all(path.is_dir() for path in loras)
    config = (folder / "exp/hdmole_started/final/adaptation.yaml").read_text()
    assert [config.index(str(path)) for path in loras] == sorted(config.index(str(path)) for path in loras)


def test_a_changed_setting_restarts(mini):
    folder, _ = mini
    output = run(folder, "--stop-stage", "2", training=f"{SHORT} --train.optim.lr 0.002")
    assert "stage 2" in output and "again, changed: training" in output and "starting anew" in output


def test_mistakes_are_one_line():
    for options, says in (
        ([], "accept"),
        (["--corpus-dir", "/nowhere"], "no /nowhere/KeSpeech/Tasks"),
        (["--mini", "true", "--corpus-dir", "x"], "--corpus-dir"),
        (["--size", "huge"], "large, medium or small"),
        (["--mini", "true", "--systems", "hdmole_oracle"], "needs the system hdmole"),
        (["--mini", "true", "--systems", "hdmoel"], "there is no conf/mini/hdmoel.yaml"),
        (["--mini", "true", "--quantise", "int8"], "none or nf4"),
        (["--mini", "true", "--lm", "/no/lm"], "no folder /no/lm"),
    ):
        done = subprocess.run([KESPEECH / "run.sh", *options], capture_output=True, text=True)
        lines = [line for line in done.stderr.splitlines() if not line.startswith("setup: ")]
        assert done.returncode == 2 and len(lines) == 1 and says in lines[0], done.stderr


@pytest.mark.parametrize("size", ["large", "medium", "small"])
def test_options_of_a_size_are_those_of_the_commands(size):
    command = [KESPEECH / "run.sh", "--config", KESPEECH / f"conf/{size}.conf", "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    values = dict(re.findall(r"^  --(\S+) .* \(default: (.*)\)$", done.stdout, re.M))
    assert values["encoder"].startswith("openai/whisper-") and values["lm"].startswith("Qwen/Qwen2.5-")
    names = ["--encoder", "e", "--lm", "l", "--prompt", "<speech>:", "--out_dir", "o"]
    assert parse_config(ImportConfig, [*names, *values["import-options"].split()]).lm_dtype == "bf16"
    folders = ["--model", "m", "--manifest", "m", "--out_dir", "o"]
    assert parse_config(DecodeConfig, [*folders, *values["decoding"].split()]).precision == "bf16"
    for path in sorted((KESPEECH / "conf").glob("*.yaml")):
        configs = ["--config", KESPEECH / "conf/systems.yaml", "--config", path]
        if "# of: " in path.read_text():
            parse_config(DecodeConfig, [*map(str, configs[2:]), *folders, *values["decoding"].split()])
        else:
            options = [*map(str, configs), "--exp_dir", "x", *values["training"].split()]
            assert parse_config(RunConfig, options).train.precision == "bf16"


@pytest.fixture(scope="module")
def download():
    """local/download.py, under a name of its own: other recipes have modules of the same name."""
    spec = importlib.util.spec_from_file_location("kespeech_download", KESPEECH / "local/download.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def mirror(tmp_path):
    """Serves data_aishell.tgz with the archives of two speakers in it."""
    source = tmp_path / "source/data_aishell"
    for part, speaker in (("train", "S0002"), ("test", "S0764")):
        recording = source / "wav" / part / speaker / f"BAC009{speaker}W0122.wav"
        recording.parent.mkdir(parents=True)
        recording.write_bytes(b"RIFF")
        with tarfile.open(source / f"wav/{speaker}.tar.gz", "w:gz") as archive:
            archive.add(recording, f"{part}/{speaker}/{recording.name}")
        recording.unlink()
        recording.parent.rmdir()
        recording.parent.parent.rmdir()
    (source / "transcript").mkdir()
    (source / "transcript/aishell_transcript_v0.8.txt").write_text("BAC009S0002W0122 你好\n")
    (tmp_path / "served/33").mkdir(parents=True)
    with tarfile.open(tmp_path / "served/33/data_aishell.tgz", "w:gz") as archive:
        archive.add(source, "data_aishell")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=tmp_path / "served")
    handler.func.log_message = lambda *args: None
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_aishell_is_fetched_checked_and_unpacked_with_its_speakers(download, mirror, tmp_path, monkeypatch, capsys):
    config = download.DownloadConfig(str(tmp_path / "out"), mirror)
    with pytest.raises(UserError, match="is not AISHELL-1's: remove it .* or by hand: get it from"):
        download.fetch_corpus(config)
    content = (tmp_path / "served/33/data_aishell.tgz").read_bytes()
    monkeypatch.setattr(download, "MD5", hashlib.md5(content).hexdigest())
    download.fetch_corpus(config)
    assert "2 speakers unpacked" in capsys.readouterr().out
    wav = tmp_path / "out/data_aishell/wav"
    found = sorted(path.relative_to(wav).as_posix() for path in wav.rglob("*") if path.is_file())
    assert found == ["test/S0764/BAC009S0764W0122.wav", "train/S0002/BAC009S0002W0122.wav"]
    download.fetch_corpus(config)
    assert "there already" in capsys.readouterr().out


def test_an_archive_of_something_else_is_one_line(download, tmp_path):
    (tmp_path / "x.wav").write_bytes(b"RIFF")
    with tarfile.open(tmp_path / "S0003.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "x.wav", "train/S0004/x.wav")
    with pytest.raises(UserError, match="S0003.tar.gz holds no folder train/S0003"):
        download.unpack_speakers(tmp_path)

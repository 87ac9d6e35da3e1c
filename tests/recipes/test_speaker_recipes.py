"""The recipes that adapt to speakers: every stage on their miniatures, and what they say about bad input."""

import functools
import json
import os
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TARGETS = {"librispeech": ["115", "210"], "tedlium3": ["AmandaBurden_2014", "BenDunlap_2007"]}
CORPUS = {"librispeech": "LibriSpeech", "tedlium3": "TEDLIUM_release-3"}
GREEDY = "--decoding=--search.kind greedy"


def recipe(name, folder, *options, fails=False):
    pytest.importorskip("espeakng_loader")
    done = subprocess.run(
        [ROOT / "egs" / name / "asr1/run.sh", "--data-dir", folder / "data", "--exp-dir", folder / "exp", *options],
        capture_output=True, text=True, cwd=folder,
    )  # fmt: skip
    assert (done.returncode != 0) == fails, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stderr if fails else done.stdout


def local(name, script, *options, fails=False, cwd=None):
    path = ROOT / "egs" / name / "asr1/local" / f"{script}.py"
    done = subprocess.run([sys.executable, path, *map(str, options)], capture_output=True, text=True, cwd=cwd)
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    if not fails:
        return done.stdout
    assert len(done.stderr.strip().splitlines()) == 1 and done.stderr.startswith("error: "), done.stderr
    return done.stderr


@pytest.mark.parametrize("name, nj", [("librispeech", "1"), ("tedlium3", "2")])
def test_miniature_runs_whole_with_both_models(name, nj, tmp_path):
    pytest.importorskip("transformers")
    output = recipe(name, tmp_path, "--mini", "true", "--nj", nj, "--model", "whisper")
    for number in range(1, 11):
        assert f"stage {number}: done in" in output
    output = recipe(name, tmp_path, "--mini", "true", "--nj", nj, "--model", "conformer", "--systems", "saml", GREEDY)
    assert output.count("done already, nothing changed") == 3 and "stage 10: done in" in output
    for model, systems in (("whisper", ["pqm", "saml_random", "saml"]), ("conformer", ["saml"])):
        exp = tmp_path / "exp" / model
        table = (exp / "RESULTS.md").read_text(encoding="utf-8")
        assert "| full precision" in table and "| NF4 + SAML " in table and f"| {TARGETS[name][1]}" in table
        for system in ["fp32", "nf4", *systems]:
            lines = [json.loads(line) for line in (exp / "decode" / system / "hyps.jsonl").read_text().splitlines()]
            assert len(lines) == 6 and {line["speaker"] for line in lines} == set(TARGETS[name])
        sizes = [sum(p.stat().st_size for p in (exp / f).rglob("*") if p.is_file()) for f in ("base/final", "nf4")]
        assert sizes[1] < sizes[0]
    assert "done already" in recipe(name, tmp_path, "--mini", "true", "--nj", "3", "--model", "conformer", "--systems",
                                    "saml", GREEDY, "--stop-stage", "4")  # fmt: skip


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """The miniatures of both corpora."""
    pytest.importorskip("espeakng_loader")
    folder = tmp_path_factory.mktemp("corpora")
    for name in CORPUS:
        local(name, "miniature", "--out_dir", folder)
    return folder


@pytest.fixture
def targets(tmp_path):
    def targets(*names):
        (tmp_path / "targets.txt").write_text("".join(f"{name}\n" for name in names))
        return tmp_path / "targets.txt"

    return targets


def test_a_corpus_that_is_not_there_is_one_line(tmp_path, targets):
    parts = ["--train_parts+", "train-clean-100"]
    error = local("librispeech", "prepare", "--corpus_dir", tmp_path, "--targets", targets("115"), *parts, fails=True)
    assert "LibriSpeech/train-clean-100" in error and "--corpus_dir" in error
    error = local("tedlium3", "prepare", "--corpus_dir", tmp_path, "--targets", targets("BenDunlap_2007"), fails=True)
    assert "no talk BenDunlap_2007.stm" in error and "--corpus_dir" in error


def test_an_unknown_speaker_is_one_line(corpora, tmp_path, targets):
    options = ["--corpus_dir", corpora, "--out_dir", tmp_path]
    error = local("librispeech", "prepare", *options, "--train_parts+", "train-clean-100", "--targets",
                  targets("115", "19"), fails=True)  # fmt: skip
    assert "no speaker 19 in" in error and "is in train-clean-100" in error
    assert "Nobody_2000" in local("tedlium3", "prepare", *options, "--targets", targets("Nobody_2000"), fails=True)
    assert list(tmp_path.glob("*.tsv")) == []


def test_talks_of_the_people_to_adapt_to_are_not_in_the_training_data(corpora, tmp_path, targets):
    local("tedlium3", "prepare", "--corpus_dir", corpora, "--out_dir", tmp_path, "--init_speakers", 2, "--targets",
          targets("BenDunlap_2007"))  # fmt: skip
    train = (tmp_path / "train.tsv").read_text()
    assert "BenDunlap_2007" not in train and "AmandaBurden_2014" in train
    assert all(name in train for name in (tmp_path / "init.txt").read_text().split())


def test_a_corrupt_recording_is_one_line_and_the_others_are_used(corpora, tmp_path, targets):
    talks = TARGETS["tedlium3"]
    local("tedlium3", "miniature", "--out_dir", tmp_path)
    recording = tmp_path / CORPUS["tedlium3"] / "data/sph" / f"{talks[1]}.sph"
    recording.write_bytes(recording.read_bytes()[:5000])
    local("tedlium3", "prepare", "--corpus_dir", tmp_path, "--out_dir", tmp_path, "--init_speakers", 2, "--targets",
          targets(*talks))  # fmt: skip
    prepare = [sys.executable, "-m", "moe_asr.bin.prepare", "--table", tmp_path / "target.tsv", "--manifest",
               tmp_path / "target.jsonl.gz"]  # fmt: skip
    done = subprocess.run(prepare, capture_output=True, text=True)
    assert done.returncode == 1 and "8 of 16 utterances rejected" in done.stderr and "truncated audio" in done.stderr
    done = subprocess.run([*prepare, "--check.max_rejected", "0.6"], capture_output=True, text=True)
    assert done.returncode == 0 and "8 utterances" in done.stdout and "rejected 8 (" in done.stdout


def test_an_interrupted_download_is_one_line_and_goes_on(tmp_path, monkeypatch):
    content = os.urandom(200_000)

    class Handler(SimpleHTTPRequestHandler):
        asked = []

        def do_GET(self):
            self.asked.append((self.path, self.headers.get("Range")))
            begin = int((self.headers.get("Range") or "bytes=0-")[6:-1])
            self.send_response(206 if begin else 200)
            self.send_header("Content-Length", str(len(content) - begin))
            self.end_headers()
            self.wfile.write(content[begin : begin + 60_000])

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=tmp_path))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    run = functools.partial(local, "librispeech", "download", "--parts+", "dev-clean", "--mirror",
                            f"http://127.0.0.1:{server.server_port}", cwd=tmp_path, fails=True)  # fmt: skip
    for part in range(3):
        error = run()
        assert "60000 of" in error and "run again to go on with downloads/dev-clean.tar.gz.part" in error
        assert (tmp_path / "downloads/dev-clean.tar.gz.part").stat().st_size == 60_000 * (part + 1)
    assert "is not the file expected" in run()  # whole now, but not LibriSpeech's
    assert Handler.asked == [("/12/dev-clean.tar.gz", r) for r in (None, *(f"bytes={60_000 * n}-" for n in (1, 2, 3)))]
    server.shutdown()


def test_mistakes_are_one_line(tmp_path):
    for name in CORPUS:
        for options, says in ((["--model", "hmm"], "whisper or conformer"),
                              (["--mini", "true", "--corpus-dir", "x"], "--corpus-dir")):  # fmt: skip
            done = subprocess.run([ROOT / "egs" / name / "asr1/run.sh", *options], capture_output=True, text=True)
            last = done.stderr.strip().splitlines()[-1]
            assert done.returncode == 2 and says in last and len(done.stderr.strip().splitlines()) <= 2, done.stderr

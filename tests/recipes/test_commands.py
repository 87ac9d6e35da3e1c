"""The commands one after the other on a corpus of noise, and what they say when they are used wrongly."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import yaml

ENCODER = {"width": 16, "layers": 1, "heads": 2}
ACCENTS = ("east", "north", "west")
EXPERTS = {"targets": [".*_proj"], "num_experts": 3, "rank": 1}


def command(folder, name, *args, fails=None):
    """Runs `python -m moe_asr.bin.NAME` in `folder`; returns what it printed, or its one line of error."""
    done = subprocess.run(
        [sys.executable, "-m", f"moe_asr.bin.{name}", *map(str, args)], cwd=folder, capture_output=True, text=True
    )
    if fails is None:
        assert done.returncode == 0, done.stderr
        return done.stdout
    assert done.returncode == fails, (done.returncode, done.stderr)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    return lines[0]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands")
    rng = np.random.default_rng(0)
    rows = ["id\taudio\ttext\tspeaker\taccent"]
    for n in range(12):
        soundfile.write(folder / f"{n}.wav", 0.1 * rng.standard_normal(16000 + 800 * n).astype("float32"), 16000)
        rows.append(f"u{n:02d}\t{n}.wav\t{'ab cd ef'[: 2 + n % 6].strip()}\ts{n % 4}\t{ACCENTS[n % 3]}")
    (folder / "all.tsv").write_text("\n".join(rows) + "\n")
    command(folder, "prepare", "--table", "all.tsv", "--manifest", "all.jsonl.gz")
    command(folder, "tokens", "--manifests+", "all.jsonl.gz", "--out_dir", "tokens")
    data = {"manifests": ["all.jsonl.gz"], "max_duration": 8}
    common = {"data": data, "valid": {**data, "shuffle": False}, "train": {"max_epochs": 2}, "augment": {}}
    base = {"model": {"conformer_ctc": {"encoder": ENCODER}}, "tokens": "tokens"}
    accent = {"model": {"domain_classifier": {"encoder": {"conformer": ENCODER}, "embedding": 8}}}
    experts = {"init": "base/final", "adaptation": {"experts": EXPERTS, "domain_classifier": "accent/final"}}
    for name, config in (("base", base), ("accent", accent), ("experts", experts), ("full", {"init": "base/final"})):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**config, **common}))
    for name in ("base", "accent", "full", "experts"):
        assert f"saved {name}/final" in command(folder, "train", "--config", f"{name}.yaml", "--exp_dir", name)
    return folder


def decode(folder, out, *args, fails=None):
    return command(
        folder, "decode", "--model", "base/final", "--manifest", "all.jsonl.gz", "--out_dir", out, *args, fails=fails
    )


def test_training_leaves_what_is_promised(corpus):
    assert {"config.yaml", "train.log", "metrics.jsonl", "tensorboard", "checkpoints", "final"} <= {
        p.name for p in (corpus / "experts").iterdir()
    }
    assert {p.name for p in (corpus / "experts/final").iterdir()} == {"adapter", "domain_classifier", "adaptation.yaml"}
    resolved = yaml.safe_load((corpus / "experts/config.yaml").read_text())
    assert resolved["adaptation"]["experts"]["router"]["route"] == "hierarchical"


def test_tensorboard_shows_losses_and_routing(corpus):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(corpus / "experts/tensorboard"), size_guidance={"images": 0})
    events.Reload()
    assert "routing/weights" in events.Tags()["images"]
    assert "routing/active_experts" in events.Tags()["scalars"]
    assert any("loss" in tag for tag in events.Tags()["scalars"])


def test_decode_again_does_nothing_and_settings_are_compared(corpus):
    decode(corpus, "d1", "--adaptation", "experts/final")
    before = (corpus / "d1/hyps.jsonl").read_bytes()
    assert "nothing to do" in decode(corpus, "d1", "--adaptation", "experts/final")
    assert (corpus / "d1/hyps.jsonl").read_bytes() == before
    assert "--on_change restart" in decode(corpus, "d1", fails=1)
    decode(corpus, "d1", "--on_change", "restart")
    decode(corpus, "d2", "--adaptation", "experts/final")
    assert (corpus / "d2/hyps.jsonl").read_bytes() == before
    system = json.loads((corpus / "d2/system.json").read_text())
    assert 1 <= system["mean_active_experts"] <= 3 and 0 < system["trainable_parameters"] < system["total_parameters"]
    assert json.loads((corpus / "d1/system.json").read_text())["trainable_parameters"] == 0


STOPPED_DECODE = """
import os, signal, sys
from moe_asr.decoding import run, stream
from moe_asr.config import run_command
write, count = stream.HypothesisStream.write, [0]
how = sys.argv.pop(1)
def stopped(self, lines):
    count[0] += 1
    if count[0] == 3 and how == "kill": os._exit(9)
    if count[0] == 3 and how != "no": os.kill(os.getpid(), getattr(signal, how))
    print("decoded", *(line["id"] for line in lines))
    write(self, lines)
stream.HypothesisStream.write = stopped
run_command(run.DecodeConfig, run.decode)
"""


@pytest.fixture(scope="module")
def calm_decode(corpus):
    options = ["--model", "base/final", "--manifest", "all.jsonl.gz", "--adaptation", "experts/final"]
    options += ["--max_duration", "4"]
    command(corpus, "decode", *options, "--out_dir", "calm")
    return options


@pytest.mark.parametrize(("how", "code"), [("kill", 9), ("SIGTERM", 143), ("SIGUSR1", 138), ("SIGINT", 130)])
def test_a_stopped_decode_ends_in_the_same_bytes(corpus, calm_decode, how, code):
    out = f"stopped-{how}"
    decoded = []
    for arguments, expected in (([how], code), (["no"], 0)):
        words = [sys.executable, "-c", STOPPED_DECODE, *arguments, *calm_decode, "--out_dir", out]
        done = subprocess.run(words, cwd=corpus, capture_output=True, text=True)
        assert done.returncode == expected, done.stderr
        decoded.append(
            [i for line in done.stdout.splitlines() if line.startswith("decoded ") for i in line.split()[1:]]
        )
        if expected:
            assert not (corpus / out / "system.json").exists() and "routing.jsonl" in os.listdir(corpus / out)
            left = 12 - len(decoded[0])
            assert how == "kill" or f"stopped by {how}, {left} of 12 utterances are left" in done.stdout
    assert len(decoded[0]) > 2 and sorted(decoded[0] + decoded[1]) == [f"u{n:02d}" for n in range(12)]
    assert (corpus / out / "hyps.jsonl").read_bytes() == (corpus / "calm/hyps.jsonl").read_bytes()
    systems = [json.loads((corpus / name / "system.json").read_text()) for name in ("calm", out)]
    assert systems[0]["routing"] == systems[1]["routing"] is not None
    assert "routing.jsonl" not in os.listdir(corpus / out)


def test_searches_and_routes_run(corpus):
    decode(corpus, "base", "--search.kind", "greedy")
    for n, options in enumerate([["--search.kind", "prefix_beam"], ["--global_route", "label"],
                                 ["--global_route", "uniform"], ["--fallback", "1.0"]]):  # fmt: skip
        decode(corpus, f"option{n}", "--adaptation", "experts/final", *options)
        assert len((corpus / f"option{n}/hyps.jsonl").read_text().splitlines()) == 12


def test_scores_and_results(corpus):
    decode(corpus, "s1")
    command(corpus, "decode", "--model", "full/final", "--manifest", "all.jsonl.gz", "--out_dir", "s2")
    decode(corpus, "s3", "--adaptation", "experts/final")
    assert "95 % interval" in command(corpus, "score", "--decode_dir", "s1", "--compare", "s3")
    command(corpus, "results", "--systems+", "base=s1", "--systems+", "full=s2", "--systems+", "experts=s3",
            "--general", "east")  # fmt: skip
    table = (corpus / "RESULTS.md").read_text()
    assert "| full" in table and "100.00" in table and "| experts" in table and str(corpus) not in table


def test_a_finished_run_is_left_alone_and_a_changed_one_refused_or_restarted(corpus):
    weights = (corpus / "full/final/model.safetensors").read_bytes()
    command(corpus, "train", "--config", "full.yaml", "--exp_dir", "full")
    assert (corpus / "full/final/model.safetensors").read_bytes() == weights
    change = ["train", "--config", "full.yaml", "--exp_dir", "full", "--train.optim.lr", "0.005"]
    assert "train.optim.lr" in command(corpus, *change, fails=1)
    assert "starting anew" in command(corpus, *change, "--on_change", "restart")
    assert (corpus / "full/final/model.safetensors").read_bytes() != weights
    shorter = [*change, "--on_change", "restart", "--train.max_epochs", "1"]
    assert "starting anew: the finished run had other" in command(corpus, *shorter)
    assert "starting anew" not in command(corpus, *shorter)
    (corpus / "full/mine.txt").write_text("not to be removed")
    assert "starting anew" in command(corpus, *shorter, "--train.seed", "5") and (corpus / "full/mine.txt").is_file()


@pytest.mark.parametrize(
    "change, code, says",
    [
        ({"trian": {}}, 2, "trian"),
        ({"train": {"max_epoch": 3}}, 2, "max_epoch"),
        ({"adaptation": {"experts": {**EXPERTS, "targets": ["q_prj"]}, "domain_classifier": "accent/final"}}, 1,
         "target 'q_prj' matches no linear layer; linear layers here are called"),
        ({"adaptation": {"experts": {**EXPERTS, "num_experts": 5}, "domain_classifier": "accent/final"}}, 1,
         "5 experts for 3 domains"),
        ({"adaptation": {"experts": EXPERTS, "domain_classifier": "base/final"}}, 1, "no domain classifier"),
        ({"init": "nowhere/final"}, 1, "nowhere/final"),
        ({"data": {"manifests": ["missing.jsonl.gz"]}}, 1, "missing.jsonl.gz"),
        ({"device": "cuda:77"}, 1, "cuda:77"),
    ],
)  # fmt: skip
def test_bad_configuration_is_one_line(corpus, tmp_path, change, code, says):
    config = yaml.safe_load((corpus / "experts.yaml").read_text())
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump({**config, **change}))
    line = command(corpus, "train", "--config", tmp_path / "bad.yaml", "--exp_dir", tmp_path / "exp", fails=code)
    assert says in line


def test_experts_train_on_a_quantised_model_which_is_decoded_with_them(corpus):
    printed = command(corpus, "quantise", "--model", "base/final", "--out_dir", "nf4")
    assert "bits per weight" in printed and "times smaller" in printed
    before = (corpus / "nf4/model.safetensors").read_bytes()
    command(corpus, "train", "--config", "experts.yaml", "--exp_dir", "on_nf4", "--init", "nf4")
    assert (corpus / "nf4/model.safetensors").read_bytes() == before
    options = ["--manifest", "all.jsonl.gz", "--adaptation", "on_nf4/final"]
    command(corpus, "decode", "--model", "nf4", "--out_dir", "d_nf4", *options)
    assert len((corpus / "d_nf4/hyps.jsonl").read_text().splitlines()) == 12
    assert "another base model" in decode(corpus, "d_other", *options, fails=1)
    whole = command(corpus, "train", "--config", "full.yaml", "--exp_dir", "whole", "--init", "nf4", fails=1)
    assert "nf4 is quantised and cannot be fine-tuned as a whole" in whole and not (corpus / "whole").exists()
    encoder = ["train", "--config", "base.yaml", "--exp_dir", "whole", "--init_encoder", "nf4"]
    assert "nf4 is quantised" in command(corpus, *encoder, fails=1)


def test_bad_command_lines_are_one_line(corpus):
    assert "did you mean 'exp_dir'" in command(corpus, "train", "--config", "base.yaml", "--exp_dri", "x", fails=2)
    assert "nope.yaml" in command(corpus, "train", "--config", "nope.yaml", fails=2)
    again = ["decode", "--manifest", "all.jsonl.gz", "--out_dir", "x", "--model"]
    other = command(corpus, *again, "full/final", "--adaptation", "experts/final", fails=1)
    assert "another base model" in other
    assert "no recogniser" in command(corpus, *again, "accent/final", fails=1)
    assert "no manifest" in command(corpus, *again, "base/final", "--manifest", "x.jsonl", fails=1)


def test_a_damaged_adapter_is_refused(corpus, tmp_path):
    import shutil

    shutil.copytree(corpus / "experts/final", tmp_path / "final")
    path = tmp_path / "final/adapter/adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    assert "damaged" in decode(corpus, "y", "--adaptation", tmp_path / "final", fails=1)


def test_truncated_audio_is_rejected_and_the_run_goes_on(corpus, tmp_path):
    rows = (corpus / "all.tsv").read_text().splitlines()
    data = (corpus / "3.wav").read_bytes()
    (tmp_path / "3.wav").write_bytes(data[: len(data) // 2])
    rows = [row.replace("\t3.wav", f"\t{tmp_path}/3.wav") for row in rows]
    (corpus / "cut.tsv").write_text("\n".join(rows) + "\n")
    out = command(corpus, "prepare", "--table", "cut.tsv", "--manifest", tmp_path / "cut.jsonl", "--check.max_rejected",
                  "0.2")  # fmt: skip
    assert "11 utterances" in out and "rejected 1" in out
    rejected = [json.loads(line) for line in next(tmp_path.glob("rejected*.jsonl")).read_text().splitlines()]
    assert rejected[0]["id"] == "u03"
    assert "rejected" in command(
        corpus, "prepare", "--table", "cut.tsv", "--manifest", tmp_path / "cut2.jsonl", fails=1
    )

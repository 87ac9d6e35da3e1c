"""The recipe for languages: every stage on its miniature, one more language, and what it says about bad input."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "egs/commonvoice/asr1"
LANGUAGES = ["de", "el", "ru", "zh-CN"]


def recipe(folder, *options, fails=False):
    pytest.importorskip("espeakng_loader")
    pytest.importorskip("opencc")
    pytest.importorskip("transformers")
    done = subprocess.run(
        [RECIPE / "run.sh", "--mini", "true", "--nj", "1", "--data-dir", folder / "data", "--exp-dir", folder / "exp",
         "--base-languages", " ".join(LANGUAGES), *options],
        capture_output=True, text=True, cwd=folder,
    )  # fmt: skip
    assert (done.returncode != 0) == fails, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stderr if fails else done.stdout


def contents(folder):
    return {path: hashlib.sha256(path.read_bytes()).digest() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_miniature_runs_whole_and_one_more_language_leaves_the_experts_of_the_others_as_they_are(tmp_path):
    experts = tmp_path / "exp/expert"
    recipe(tmp_path, "--languages", "de el ru", "--stop-stage", "3")
    before = contents(experts)
    assert {path.relative_to(experts).parts[0] for path in before if path.parts[-2] == "adapter"} == set(LANGUAGES[:3])
    output = recipe(tmp_path)
    after = contents(experts)
    finals = {path: digest for path, digest in before.items() if "final" in path.parts}
    assert finals and {path: after[path] for path in finals} == finals
    start = (experts / "zh-CN.start").read_text().strip()
    assert f"- expert of zh-CN, from {start}" in output and start.endswith("/final")
    assert "stage 2: Take over Whisper, with tokens of our own where they are asked for; then train it: done" in output
    for number in range(3, 8):
        assert f"stage {number}: done in" in output

    table = (tmp_path / "exp/RESULTS.md").read_text(encoding="utf-8")
    assert "zh-CN, CER" in table and "el, WER" in table and "one shared LoRA" in table
    rows = [
        line.split("|")[1].strip() for line in table.split("### By language")[0].splitlines() if line.startswith("|")
    ]
    names = [re.search("# name: (.*)", path.read_text()).group(1) for path in (RECIPE / "conf/mini").glob("*.yaml")
             if "# name: " in path.read_text()]  # fmt: skip
    assert sorted(rows[2:]) == sorted(names) and rows[2] == "base: joint training" and len(rows) == 13
    decodes = tmp_path / "exp/decode"
    for folder in [decodes / "base/told", decodes / "fusion_router/detected", decodes / "static_svd/detected"]:
        lines = [json.loads(line) for line in (folder / "hyps.jsonl").read_text(encoding="utf-8").splitlines()]
        assert {line["language"] for line in lines} == set(LANGUAGES)
        assert all(("detected" in line) == (folder.name == "detected") for line in lines)
    trained = {name: json.loads((decodes / name / "detected/system.json").read_text())["trainable_parameters"]
               for name in ("experts", "lora", "static_exact", "student_all", "student")}  # fmt: skip
    assert trained["experts"] == trained["lora"] == trained["static_exact"] == trained["student_all"]
    assert trained["student"] * 4 == trained["lora"]
    assert recipe(tmp_path).count("done already, nothing changed") == 7


def test_bad_options_are_one_line(tmp_path):
    error = recipe(tmp_path, "--languages", "de fr", fails=True)
    assert "language fr is none of --base-languages" in error
    assert "language de is named twice" in recipe(tmp_path, "--languages", "de de", fails=True)
    error = recipe(tmp_path, "--systems", "lora magic", fails=True)
    assert "no system 'magic': there is no conf/mini/magic.yaml" in error
    assert "the system fusion needs the system experts" in recipe(tmp_path, "--systems", "fusion", fails=True)
    assert "--mini true makes a corpus of its own" in recipe(tmp_path, "--corpus-dir", tmp_path, fails=True)
    done = subprocess.run([RECIPE / "run.sh", "--corpus", "x"], capture_output=True, text=True)
    assert "--corpus takes common_voice, mls or fleurs, not 'x'" in done.stderr


def prepare(*options, fails=False):
    done = subprocess.run(
        [sys.executable, RECIPE / "local/prepare.py", *map(str, options)], capture_output=True, text=True
    )  # fmt: skip
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    if not fails:
        return done.stdout
    assert len(done.stderr.strip().splitlines()) == 1 and done.stderr.startswith("error: "), done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def common_voice(tmp_path_factory):
    pytest.importorskip("espeakng_loader")
    folder = tmp_path_factory.mktemp("cv")
    make = [sys.executable, RECIPE / "local/miniature.py", "--out_dir", folder, "--languages", "[de, el]"]
    subprocess.run([*make, "--train", "6", "--speakers", "3"], check=True, stdout=subprocess.DEVNULL)
    return folder


def test_speakers_are_held_out_where_there_is_no_list_for_development(common_voice, tmp_path):
    options = ["--corpus", "common_voice", "--corpus_dir", common_voice, "--out_dir", tmp_path]
    output = prepare(*options, "--language", "de")
    # six clips of the train list and three of what would be dev.tsv, one speaker of which is enough
    assert "de train: 8 utterances of 5 speakers" in output and "de dev: 1 utterances of 1 speakers" in output
    output = prepare(*options, "--language", "el", "--max_train", 4, "--max_train_of", '{"el": 5, "de": 1}')
    assert "el train: 5 utterances" in output and "el dev: 3 utterances of 3 speakers" in output


def test_languages_that_are_not_there_are_one_line(common_voice, tmp_path):
    options = ["--corpus", "common_voice", "--out_dir", tmp_path / "out"]
    error = prepare(*options, "--corpus_dir", common_voice, "--language", "fr", fails=True)
    assert f"no language 'fr' in {common_voice}: there is no folder {common_voice}/fr" in error
    error = prepare(*options, "--corpus_dir", tmp_path / "nowhere", "--language", "de", fails=True)
    assert "no folder" in error and "nowhere" in error
    subprocess.run(["cp", "-r", common_voice / "el", tmp_path / "el"], check=True)
    header = (tmp_path / "el/test.tsv").read_text().splitlines()[0]
    (tmp_path / "el/test.tsv").write_text(header + "\n")
    error = prepare(*options, "--corpus_dir", tmp_path, "--language", "el", fails=True)
    assert "el/test.tsv: no line of it can be used: it is empty" in error
    assert not list((tmp_path / "out").glob("*.tsv"))
    digits = ["--corpus", "digits", "--corpus_dir", tmp_path, "--out_dir", tmp_path / "out"]
    assert "there are spoken digits in ar and en, not in 'de'" in prepare(*digits, "--language", "de", fails=True)
    assert "no " in prepare(*digits, "--language", "ar", fails=True)


def test_arabic_digits_have_no_speaker_in_two_parts(tmp_path):
    folder = tmp_path / "arabic_digits"
    folder.mkdir()
    lines = [f"zero/{speaker:08}_NO_{k}.ogg\t{speaker:08}\t{k}\n" for speaker in range(30) for k in (0, 7)]
    (folder / "metadata.tsv").write_text("path\tspeaker\tdigit\n" + "".join(lines))
    prepare("--corpus", "digits", "--corpus_dir", tmp_path, "--language", "ar", "--out_dir", tmp_path / "ar")
    rows = {part: (tmp_path / f"ar/{part}.tsv").read_text().splitlines()[1:] for part in ("train", "dev", "test")}
    speakers = {part: {row.split("\t")[3] for row in found} for part, found in rows.items()}
    assert [len(speakers[part]) for part in rows] == [20, 4, 6] and [len(found) for found in rows.values()] == [
        40,
        8,
        12,
    ]
    assert len(set.union(*speakers.values())) == 30
    assert {row.split("\t")[2] for row in rows["train"]} == {"صفر", "سبعة"}
    (folder / "metadata.tsv").write_text("path\tspeaker\tdigit\na.ogg\tx\tten\n")
    error = prepare(
        "--corpus", "digits", "--corpus_dir", tmp_path, "--language", "ar", "--out_dir", tmp_path, fails=True
    )
    assert "metadata.tsv:2: expected a path, a speaker and a digit" in error


def write_audio(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(8000, 0.1), 16000)


def tables(folder):
    """(speaker, text, file) of each row of each part."""
    found = {}
    for part in ("train", "dev", "test"):
        header, *rows = [line.split("\t") for line in (folder / f"{part}.tsv").read_text(encoding="utf-8").splitlines()]
        rows = [dict(zip(header, row)) for row in rows]
        assert {row["language"] for row in rows} == {"de"}
        found[part] = sorted((row["speaker"], row["text"], Path(row["audio"]).name) for row in rows)
    return found


def theirs(manifests):
    found = {}
    for part, sets in manifests.items():
        files = {recording.id: Path(recording.sources[0].source).name for recording in sets["recordings"]}
        found[part] = sorted((s.speaker, s.text, files[s.recording_id]) for s in sets["supervisions"])
    return found


def test_mls_is_read_as_lhotse_reads_it(tmp_path):
    from lhotse.recipes.mls import prepare_mls

    corpus = tmp_path / "mls_german"
    for part, count in (("train", 3), ("dev", 1), ("test", 2)):
        names = [f"{7 + k}_{40 + k}_{k:06}" for k in range(count)]
        for name in names:
            write_audio(corpus / part / "audio" / name.split("_")[0] / name.split("_")[1] / f"{name}.flac")
        text = "".join(f"{name}\tein Satz, der {name} heißt\n" for name in names)
        (corpus / part / "transcripts.txt").write_text(text, encoding="utf-8")
    (corpus / "metainfo.txt").write_text(" 7 | M | a\n 8 | F | b\n 9 | M | c\n")
    prepare("--corpus", "mls", "--corpus_dir", tmp_path, "--language", "de", "--out_dir", tmp_path / "de")
    assert tables(tmp_path / "de") == theirs(prepare_mls(tmp_path, opus=False)["german"])
    options = ["--corpus", "mls", "--corpus_dir", tmp_path, "--out_dir", tmp_path]
    assert "MLS has no language 'ru'; it has de, en" in prepare(*options, "--language", "ru", fails=True)
    assert "no mls_polish or mls_polish_opus in" in prepare(*options, "--language", "pl", fails=True)


def test_fleurs_is_read_as_lhotse_reads_it(tmp_path):
    from lhotse.recipes.fleurs import prepare_fleurs

    for part, count in (("train", 3), ("dev", 1), ("test", 2)):
        lists = tmp_path / "metadata/de_de" / f"{part}.tsv"
        lists.parent.mkdir(parents=True, exist_ok=True)
        fields = [
            [str(k // 2), f"{part}{k}.wav", f"Satz {k}.", f"satz {k}", "s |", "8000", "MALE"] for k in range(count)
        ]
        lists.write_text("".join("\t".join(line) + "\n" for line in fields))
        for k in range(count):
            write_audio(tmp_path / "de_de" / part / f"{part}{k}.wav")
    prepare("--corpus", "fleurs", "--corpus_dir", tmp_path, "--language", "de", "--out_dir", tmp_path / "de")
    assert tables(tmp_path / "de") == theirs(prepare_fleurs(tmp_path, tmp_path / "lhotse", languages="de_de")["de_de"])
    error = prepare(
        "--corpus", "fleurs", "--corpus_dir", tmp_path, "--language", "zh", "--out_dir", tmp_path, fails=True
    )
    assert "no language 'zh' in" in error and "there are de_de" in error

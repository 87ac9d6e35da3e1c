import json

import pytest

from moe_asr.bin.results import ResultsConfig, write_results
from moe_asr.config import run_command


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    path = tmp_path / "mini" / "asr1"
    for name, hyp in (("base", "one x"), ("moe", "one two")):
        folder = path / "exp" / name / "decode"
        folder.mkdir(parents=True)
        lines = [{"id": f"u{k}", "ref": "one two", "hyp": hyp, "accent": ["us", "de"][k % 2]} for k in range(30)]
        (folder / "hyps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        facts = {
            "model": "m",
            "trainable_parameters": 5,
            "total_parameters": 100,
            "command": f"decode --model {path}/m",
        }
        (folder / "system.json").write_text(json.dumps(facts))
    monkeypatch.chdir(path)
    return path


SYSTEMS = ["--systems+", "base=exp/base/decode", "--systems+", "HDMoLE, top 2=exp/moe/decode"]


def test_writes_and_updates_the_file(recipe, capsys):
    for _ in range(2):
        run_command(ResultsConfig, write_results, [*SYSTEMS, "--general", "us"])
    text = (recipe / "RESULTS.md").read_text()
    assert text.startswith("# Results of mini/asr1\n") and text.count("HDMoLE, top 2  | ") == text.count(
        "base           | "
    )
    assert "50.0 [50.0, 50.0]" in text and "decode --model m" in text and str(recipe) not in text
    out = capsys.readouterr().out
    assert "HDMoLE, top 2" in out and "< 0.001" in out and "RESULTS.md" in out


def test_systems_from_a_file(recipe, capsys):
    (recipe / "results.yaml").write_text("systems: [base=exp/base/decode]\nmetric: cer\ntitle: Mine\n")
    run_command(ResultsConfig, write_results, ["--config", "results.yaml", "--output", "OTHER.md"])
    assert (recipe / "OTHER.md").read_text().startswith("# Mine\n") and not (recipe / "RESULTS.md").exists()
    assert "CER in %" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--systems+", "base=exp/none"], "no system.json in exp/none"),
        (["--systems+", "base"], "name=decode_dir"),
        ([*SYSTEMS, "--general", "uk"], "no utterance has the accent 'uk'"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(recipe, capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        run_command(ResultsConfig, write_results, arguments)
    out, err = capsys.readouterr()
    assert caught.value.code == 1 and message in err and err.count("\n") == 1 and out == ""
    assert not (recipe / "RESULTS.md").exists()


def test_by_language(recipe, capsys):
    for name in ("base", "moe"):
        path = recipe / "exp" / name / "decode" / "hyps.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        lines = [line | {"language": line["accent"].replace("us", "zh-CN"), "detected": "zh"} for line in lines]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    agnostic = [word.replace("--systems", "--agnostic") for word in SYSTEMS]
    run_command(ResultsConfig, write_results, [*SYSTEMS, *agnostic, "--by", "language"])
    text = (recipe / "RESULTS.md").read_text()
    assert "zh-CN, CER" in text and "de, WER" in text and "language-agnostic" in text
    out = capsys.readouterr().out
    assert "mean error rate in %" in out and "50.0" in out
    for wrong in (["--general", "us"], ["--against", "x"]):
        with pytest.raises(SystemExit):
            run_command(ResultsConfig, write_results, [*SYSTEMS, "--by", "language", *wrong])
    with pytest.raises(SystemExit):
        run_command(ResultsConfig, write_results, [*SYSTEMS, *agnostic])
    assert "agnostic and against are for --by language" in capsys.readouterr().err

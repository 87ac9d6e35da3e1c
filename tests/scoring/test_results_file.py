import dataclasses
from pathlib import Path

import pytest

from moe_asr.errors import UserError
from moe_asr.scoring.results import make_results, read_row
from moe_asr.scoring.results_file import END, START, portable, render, update_results
from moe_asr.scoring.significance import Bootstrap

BOOTSTRAP = Bootstrap(100)


@pytest.fixture
def results(decode):
    rows = [read_row(f"base={decode('base', 0.3, 1)}", "wer", "english")]
    rows += [
        read_row(f"moe={decode('moe', 0.1, 2, trainable_parameters=50, mean_active_experts=2.5)}", "wer", "english")
    ]
    return make_results(rows, "us", BOOTSTRAP)


def cells(text, first):
    return [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith(f"| {first} ")
    ]


def test_table_holds_the_numbers(results, tmp_path):
    text = render(results, tmp_path, "wer", "english", BOOTSTRAP)
    assert cells(text, "system")[0] == [
        "system",
        "be",
        "de",
        "accents pooled",
        "us",
        "p",
        "trainable",
        "trainable %",
        "active experts",
    ]
    table, *counts = cells(text, "moe")
    pooled = results.cells[1][2]
    low, high = pooled.interval
    assert table[3] == f"{100 * pooled.counts.rate:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    assert table[6:] == ["50", "5.00", "2.50"] and float(table[5].strip("< ")) <= 0.05
    assert cells(text, "base")[0][5:] == ["-", "0", "0.00", "-"]
    c = pooled.counts
    assert counts[2] == ["moe", "accents pooled", "40", *map(str, (c.n, c.s, c.d, c.i)), f"{100 * c.rate:.2f}"]
    assert len(counts) == 4


def test_every_row_says_how_it_was_made(results, tmp_path):
    text = render(results, tmp_path, "wer", "english", BOOTSTRAP)
    assert "Versions: python 3.11.1, torch 2.0.\n" in text and text.count("torch 2.0") == 1
    for name in ("base", "moe"):
        assert f"**{name}**: git `0123456789`, 2026-01-31, 2.5 s\n\n```\npython -m moe_asr.bin.decode --model" in text
    assert "text normalised as `english`; 60 utterances" in text
    assert "'us' is the general domain, left out of 'accents pooled'." in text
    assert "against base on 'accents pooled'" in text


def test_versions_that_differ_are_given_with_each_row(results, tmp_path):
    other = dataclasses.replace(results.rows[1].decodes[0], versions={"torch": "9.9"})
    results.rows[1].decodes[0] = other
    text = render(results, tmp_path, "wer", "english", BOOTSTRAP)
    assert "2.5 s, torch 9.9\n" in text and "2.5 s, python 3.11.1, torch 2.0\n" in text and "Versions" not in text


def test_rendering_twice_gives_the_same(results, tmp_path):
    assert render(results, tmp_path, "wer", "none", BOOTSTRAP) == render(results, tmp_path, "wer", "none", BOOTSTRAP)


def test_commands_hold_no_path_of_this_machine(tmp_path):
    (tmp_path / "repo" / ".git").mkdir(parents=True)
    recipe = tmp_path / "repo" / "egs" / "asr1"
    recipe.mkdir(parents=True)
    command = (
        f"{tmp_path}/repo/tools/venv/bin/python x.py --model={recipe}/exp/base --corpus_dir /data/corpora/c --lr 1/2"
    )
    expected = "../../tools/venv/bin/python x.py --model=exp/base --corpus_dir .../c --lr 1/2"
    assert portable(command, recipe) == expected
    assert portable("python -m x --title 'two words'", recipe) == "python -m x --title 'two words'"


def test_long_commands_are_folded_and_stay_one_command(tmp_path):
    import shlex

    command = "python -m moe_asr.bin.decode --name 'a --b' " + " ".join(f"--option-{k} value" for k in range(8))
    folded = portable(command, tmp_path)
    assert len(folded.splitlines()) == 10 and "--name 'a --b' \\\n" in folded
    assert shlex.split(folded.replace("\\\n", "")) == shlex.split(command)


def test_new_file(tmp_path):
    update_results(tmp_path / "RESULTS.md", "Results of x", "table 1\n")
    assert (tmp_path / "RESULTS.md").read_text() == f"# Results of x\n\n{START}\n\ntable 1\n\n{END}\n\n## Notes\n"


def test_text_around_the_generated_part_is_kept_to_the_letter(tmp_path):
    path = tmp_path / "RESULTS.md"
    update_results(path, "t", "table 1")
    path.write_text("preface é\n" + path.read_text() + "\nhand-written  \n\n| a |\n", "utf-8")
    before = path.read_text("utf-8")
    update_results(path, "another title", "table 2")
    assert path.read_text("utf-8") == before.replace("table 1", "table 2")


def test_file_written_by_hand_gets_the_part_at_its_end(tmp_path):
    path = tmp_path / "RESULTS.md"
    path.write_text("# Mine\n\nmy text\n")
    for _ in range(2):
        update_results(path, "t", "table")
        assert path.read_text() == f"# Mine\n\nmy text\n\n{START}\n\ntable\n\n{END}\n"


@pytest.mark.parametrize(
    "text", [START, END, f"{END}\n{START}", f"{START}\n{END}\n{START}\n{END}", f"{START}{END}{END}"]
)
def test_marks_that_are_no_pair_are_an_error_and_nothing_is_lost(tmp_path, text):
    path = tmp_path / "RESULTS.md"
    path.write_text(text)
    with pytest.raises(UserError, match="once each"):
        update_results(path, "t", "table")
    assert path.read_text() == text


def test_file_in_another_encoding(tmp_path):
    (tmp_path / "RESULTS.md").write_bytes(b"\xff")
    with pytest.raises(UserError, match="not UTF-8"):
        update_results(tmp_path / "RESULTS.md", "t", "table")


def test_nothing_but_the_file_is_left(tmp_path):
    update_results(Path(tmp_path, "RESULTS.md"), "t", "table")
    assert [p.name for p in tmp_path.iterdir()] == ["RESULTS.md"]


def test_table_of_speakers(decode, tmp_path):
    size = {"model_bytes": 4_000_000, "seconds_per_utterance": 0.0421}
    rows = [read_row(f"base={decode('base', 0.3, 1)}", "wer", "english")]
    size |= {"trainable_parameters": 50, "mean_active_experts": 2.5}
    rows += [read_row(f"moe={decode('moe', 0.1, 2, **size)}", "wer", "english")]
    results = make_results(rows, None, BOOTSTRAP, by="speaker")
    text = render(results, tmp_path, "wer", "english", BOOTSTRAP)
    header = ["system", "all", "change %", "p", "trainable", "trainable %", "active experts", "MB", "ms / utterance"]
    assert cells(text, "system")[0] == header
    first, second = (cell[0].counts.rate for cell in results.cells)
    moe, base = (dict(zip(header, cells(text, name)[0])) for name in ("moe", "base"))
    assert moe["change %"] == f"{100 * (second / first - 1):+.1f}" and moe["change %"].startswith("-")
    assert (moe["MB"], moe["ms / utterance"], base["MB"], base["change %"]) == ("4.0", "42.1", "-", "-")
    assert (moe["trainable %"], base["trainable %"], moe["trainable"], base["trainable"]) == ("5.00", "-", "50", "-")
    (speaker,) = cells(text, "de4")
    rates = [f"{100 * summary.counts.rate:.1f}" for summary in results.speakers["de4"]]
    assert speaker == ["de4", "10", str(results.speakers["de4"][0].counts.n), *rates]
    assert "change: of the rate, relative to base." in text

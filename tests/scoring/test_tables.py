import io

import pytest
from rich.console import Console

from moe_asr.scoring.hypotheses import Hypothesis
from moe_asr.scoring.report import make_report
from moe_asr.scoring.significance import Bootstrap
from moe_asr.scoring.tables import markdown_table, p_text, percent, percent_interval, plain_table, print_report


def test_numbers():
    assert [percent(rate) for rate in (0.12345, 0.0, 1.5, None)] == ["12.35", "0.00", "150.00", "n/a"]
    assert [percent_interval(x) for x in ((0.1, 0.234), None)] == ["[10.00, 23.40]", ""]
    assert [p_text(p) for p in (0.0004, 0.001, 0.25, 1.0)] == ["p < 0.001", "p = 0.001", "p = 0.250", "p = 1.000"]


def test_markdown_table_is_straight_also_with_wide_letters():
    assert markdown_table(["system", "on", "WER %"], [["a|b", "北京", "1.0"], ["c", "x\ny", "10.0"]], left=2) == (
        "| system | on   | WER % |\n| ------ | ---- | ----: |\n| a\\|b   | 北京 |   1.0 |\n| c      | x y  |  10.0 |\n"
    )


@pytest.fixture
def hypotheses():
    one = [Hypothesis(f"a{k}", "One two.", "one", speaker=f"[s{k}]", accent="us", language="en") for k in range(8)]
    two = [Hypothesis("b0", "one two", "one two", speaker="t", accent="de", language="en", duration=3600)]
    return one + two


def printed(capsys, hypotheses, metric="wer", normaliser="english", other=None, against=None):
    report, _ = make_report("test", hypotheses, metric, normaliser, Bootstrap(50), other)
    print_report(report, against)
    return capsys.readouterr().out


def test_report_on_a_page(capsys, hypotheses):
    text = printed(capsys, hypotheses)
    lines = [line.split() for line in text.splitlines()]
    assert text.startswith("test: WER of text normalised as 'english', 9 utterances, 1.00 h\n")
    assert any(words[:7] == ["all", "9", "18", "0", "8", "0", "44.44"] for words in lines)
    assert ["us", "8", "16", "0", "8", "0", "50.00", "[50.00,", "50.00]"] in lines
    assert ["de", "1", "2", "0", "0", "0", "0.00"] in lines
    assert ["mean", "of", "2", "25.00", "[25.00,", "25.00]"] in lines
    assert "speaker, worst 5 of 9" in text and "[s4]" in text and "[s5]" not in text
    assert "language" not in text, "one language only: the numbers are those of all"
    assert "utterances with an error: 88.89 %" in text and "raw text: WER 88.89 %" in text
    assert "\x1b" not in text and max(map(len, text.splitlines())) <= 110


def test_report_of_languages_of_several_units(capsys):
    hypotheses = [Hypothesis("a", "x y", "x", language="de", detected="de")]
    hypotheses += [Hypothesis("b", "กขค", "กข", language="th", detected="de")]
    lines = [line.split() for line in printed(capsys, hypotheses, "auto", "none", hypotheses, "b").splitlines()]
    assert ["all", "in", "characters", "1", "CER", "3", "0", "1", "0", "33.33"] in lines
    assert ["all", "in", "words", "1", "WER", "2", "0", "1", "0", "50.00"] in lines
    assert ["th", "1", "CER", "3", "0", "1", "0", "33.33"] in lines and ["mean", "of", "2", "41.67"] in lines
    text = " ".join(word for line in lines for word in line)
    assert "language identified: 50.00 % [0.00, 100.00] of 2 utterances; mean over languages 50.00 %" in text
    assert "against b, mean over languages: 41.67 -> 41.67 %" in text


def test_report_of_raw_text_has_no_line_for_it(capsys, hypotheses):
    text = printed(capsys, hypotheses, normaliser="none")
    assert text.startswith("test: WER of raw text, 9 utterances") and "raw text: WER" not in text


def test_report_with_comparison(capsys, hypotheses):
    other = [Hypothesis(h.id, h.ref, "") for h in hypotheses]
    text = printed(capsys, hypotheses, other=other, against="exp/base")
    assert "against exp/base: 100.00 -> 44.44 %, difference -55.56 [" in text
    assert "better with probability 1.000; two-sided p = 0.020" in text


def test_report_of_empty_references(capsys):
    text = printed(capsys, [Hypothesis("a", "", "uh"), Hypothesis("b", "", "")], normaliser="none")
    assert ["all", "2", "0", "0", "0", "1", "n/a"] in [line.split() for line in text.splitlines()]
    assert "hallucination: n/a % insertions" in text


def test_a_table_that_is_too_wide_folds_names_and_no_numbers():
    table = plain_table(["system", *("accent" for _ in range(8))])
    table.add_row("a system of a long name", *(f"{k}23.4" for k in range(8)))
    out = Console(width=80, file=io.StringIO())
    out.print(table)
    text = out.file.getvalue()
    assert "…" not in text and all(f"{k}23.4" in text for k in range(8)) and "a system of a long name" not in text

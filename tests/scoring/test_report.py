import json

import pytest

from moe_asr.scoring.align import Counts
from moe_asr.scoring.hypotheses import Hypothesis, read_hypotheses
from moe_asr.scoring.report import Summary, make_report, mean_rate, write_report
from moe_asr.scoring.scored import pool, score
from moe_asr.scoring.significance import Bootstrap, compare, interval

BOOTSTRAP = Bootstrap(100)


def test_report_is_made_of_the_parts(decode):
    hypotheses, other = read_hypotheses(decode("a")), read_hypotheses(decode("b", 0.4, seed=2))
    report, texts = make_report("test", hypotheses, "wer", "english", BOOTSTRAP, other)
    assert set(texts) == {"raw", "normalised"}
    scored = score(hypotheses, "wer", "english")
    assert texts["normalised"] == scored and texts["raw"] == score(hypotheses, "wer")
    wrong = sum(x.counts.errors > 0 for x in scored)
    assert report.overall == Summary(60, wrong, 120.0, pool(scored), interval(scored, BOOTSTRAP))
    assert report.raw.counts == pool(texts["raw"])
    assert report.comparison == compare(score(other, "wer", "english"), scored, BOOTSTRAP)
    assert list(report.groups) == ["accent", "language", "speaker"]
    for attribute, groups in report.groups.items():
        assert sum((group.counts for group in groups.values()), Counts()) == report.overall.counts
        assert sum(group.utterances for group in groups.values()) == 60
        assert report.means[attribute] == pytest.approx(sum(g.counts.rate for g in groups.values()) / len(groups))


def test_group_mean_weighs_groups_alike_and_skips_those_without_a_rate():
    def summary(n, s):
        return Summary(1, 1, 0.0, Counts(n=n, s=s), None)

    assert mean_rate([summary(10, 1), summary(1000, 300), summary(0, 0)]) == pytest.approx(0.2)
    assert mean_rate([summary(0, 0)]) is None


def test_attributes_that_no_utterance_has_are_left_out():
    report, texts = make_report("x", [Hypothesis("a", "x", "x"), Hypothesis("b", "x", "y")], "wer", "none", BOOTSTRAP)
    assert (report.groups, report.means, report.raw, set(texts)) == ({}, {}, None, {"raw"})


def test_files_with_a_normaliser(decode):
    folder = decode("a")
    report, texts = make_report("test", read_hypotheses(folder), "wer", "english", BOOTSTRAP)
    written = write_report(folder, report, texts, {"command": "c"})
    assert sorted(p.name for p in folder.iterdir()) == sorted([*written, "hyps.jsonl", "system.json"])
    assert set(written) == {
        *("recogs-test.txt", "recogs-test-raw.txt", "errs-test.txt", "errs-test-raw.txt"),
        *("wer-summary-test.txt", "scores.json"),
    }
    raw, normalised = 100 * report.raw.counts.rate, 100 * report.overall.counts.rate
    assert raw != normalised, "a literal * in the references is gone after normalisation"
    assert (folder / "wer-summary-test.txt").read_text() == (
        f"settings\tWER\ntext=raw\t{raw:.2f}\ntext=english\t{normalised:.2f}\n"
    )
    assert (folder / "errs-test.txt").read_text().startswith(f"%WER {normalised:.2f}% [")
    assert (folder / "errs-test-raw.txt").read_text().startswith(f"%WER {raw:.2f}% [")
    assert len((folder / "recogs-test.txt").read_text().splitlines()) == 120
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["overall"]["rate"] == report.overall.counts.rate
    assert scores["overall"]["errors"] == sum(scores["overall"][kind] for kind in "sdi")
    assert scores["groups"]["accent"]["us"]["n"] == report.groups["accent"]["us"].counts.n
    assert scores["command"] == "c" and scores["comparison"] is None and scores["set"] == "test"


def test_files_without_a_normaliser_and_without_any_reference(decode):
    folder = decode("a", lines=[{"id": "a", "ref": "", "hyp": "uh"}])
    report, texts = make_report("test", read_hypotheses(folder), "cer", "none", BOOTSTRAP)
    written = write_report(folder, report, texts, {})
    assert written == ["errs-test.txt", "recogs-test.txt", "wer-summary-test.txt", "scores.json"]
    assert (folder / "wer-summary-test.txt").read_text() == "settings\tCER\ntext=raw\tn/a\n"
    overall = json.loads((folder / "scores.json").read_text())["overall"]
    assert overall == {
        "n": 0,
        "s": 0,
        "d": 0,
        "i": 2,
        "errors": 2,
        "rate": None,
        "interval": None,
        "utterances": 1,
        "wrong": 1,
        "seconds": 0.0,
        "unit": "cer",
    }


def languages():
    """Two languages in words, of 12 and 4 words, and one in characters."""
    one = [Hypothesis(f"d{k}", "a b c", "a b x", language="de", detected="de") for k in range(4)]
    two = [Hypothesis(f"f{k}", "a b", "a b" if k else "", language="fr", detected="de") for k in range(2)]
    return one + two + [Hypothesis(f"t{k}", "กขคง", "กขคx", language="th", detected="th") for k in range(3)]


def test_languages_of_several_units_are_pooled_by_unit_and_averaged():
    hypotheses = languages()
    report, _ = make_report("test", hypotheses, "auto", "none", BOOTSTRAP, hypotheses)
    assert {name: s.counts.rate for name, s in report.units.items()} == {"cer": 3 / 12, "wer": 6 / 16}
    assert [(name, s.unit) for name, s in report.groups["language"].items()] == [
        ("de", "wer"), ("fr", "wer"), ("th", "cer"),
    ]  # fmt: skip
    mean = (1 / 3 + 2 / 4 + 1 / 4) / 3
    assert report.means["language"] == pytest.approx(mean)
    low, high = report.mean_intervals["language"]
    assert low <= mean <= high and low < high
    assert report.comparison.first == pytest.approx(mean) and report.comparison.p_value == 1.0
    assert report.identification.overall.rate == 7 / 9
    found = report.to_dict()
    assert found["overall"] is None and found["raw"] is None and found["units"]["wer"]["rate"] == 6 / 16
    assert found["identification"]["languages"]["fr"]["rate"] == 0.0


def test_files_of_several_units(tmp_path):
    report, texts = make_report("test", languages(), "auto", "none", BOOTSTRAP)
    write_report(tmp_path, report, texts, {})
    assert (tmp_path / "wer-summary-test.txt").read_text() == (
        "settings\tAUTO\ntext=raw unit=cer\t25.00\ntext=raw unit=wer\t37.50\n"
    )
    assert (tmp_path / "errs-test.txt").read_text().startswith("%CER 25.00% [3 / 12, ")


def test_one_unit_alone_is_pooled_as_ever():
    report, _ = make_report("test", languages()[:6], "auto", "none", BOOTSTRAP)
    assert report.units == {} and report.to_dict()["overall"]["rate"] == 6 / 16

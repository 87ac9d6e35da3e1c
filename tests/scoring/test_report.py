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
    }

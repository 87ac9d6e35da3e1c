import json

import pytest

from moe_asr.errors import UserError
from moe_asr.scoring.align import Counts
from moe_asr.scoring.results import ALL, POOLED, make_results, read_row
from moe_asr.scoring.scored import pool
from moe_asr.scoring.significance import Bootstrap, compare

BOOTSTRAP = Bootstrap(100)


@pytest.fixture
def rows(decode):
    decode("base", 0.3, 1)
    decode("moe", 0.1, 2, adapter="exp/moe", trainable_parameters=50, mean_active_experts=2.5)
    folder = decode("again", 0.3, 3).parent
    return [read_row(f"{name}={folder / name}", "wer", "none") for name in ("base", "moe", "again")]


def test_row_of_one_folder(rows):
    assert (rows[1].name, rows[1].trainable, rows[1].active_experts) == ("moe", 5.0, 2.5)
    assert rows[0].active_experts is None and len(rows[0].scored) == 60
    decode = rows[0].decodes[0]
    assert decode.git == "0123456789" and decode.seconds == 2.5 and decode.date.startswith("2026-01-31")


def test_row_of_several_folders_pools_them(decode, rows, lines_of):
    lines = lines_of(0.3, 1)
    folders = [
        decode(f"part{k}", lines=lines[a:b], mean_active_experts=e) for k, a, b, e in ((0, 0, 15, 1), (1, 15, 60, 3))
    ]
    row = read_row(f"base = {folders[0]}, {folders[1]}", "wer", "none")
    assert row.name == "base" and len(row.decodes) == 2
    assert pool(row.scored) == pool(rows[0].scored)
    assert row.active_experts == (15 * 1 + 45 * 3) / 60


def test_cells_are_the_pooled_counts_of_their_part(rows):
    results = make_results(rows, "us", BOOTSTRAP)
    assert results.columns == ["be", "de", POOLED, "us"] and results.compared_on == POOLED
    for row, cells in zip(rows, results.cells):
        cell = dict(zip(results.columns, cells))
        for accent in ("be", "de", "us"):
            assert cell[accent].counts == pool(x for x in row.scored if x.hypothesis.accent == accent)
        assert cell[POOLED].counts == cell["be"].counts + cell["de"].counts
        assert cell[POOLED].counts + cell["us"].counts == pool(row.scored)


def test_p_values_are_against_the_first_row_on_the_pooled_accents(rows):
    results = make_results(rows, "us", BOOTSTRAP)
    parts = [[x for x in row.scored if x.hypothesis.accent != "us"] for row in rows]
    assert results.p_values == [None, *(compare(parts[0], part, BOOTSTRAP).p_value for part in parts[1:])]
    assert results.p_values[1] < 0.05 < results.p_values[2]


def test_columns_without_a_general_domain_and_without_accents(decode, rows, lines_of):
    assert make_results(rows, None, BOOTSTRAP).columns == ["be", "de", "us", POOLED]
    lines = [line | {"accent": ""} for line in lines_of(0.2, 1)]
    row = read_row(f"a={decode('plain', lines=lines)}", "wer", "none")
    results = make_results([row], None, BOOTSTRAP)
    assert results.columns == [ALL] and results.cells[0][0].counts == pool(row.scored)
    lines[0]["accent"] = "us"
    row = read_row(f"a={decode('partly', lines=lines)}", "wer", "none")
    results = make_results([row], "us", BOOTSTRAP)
    assert results.columns == ["(unknown)", "us"] and results.compared_on == "(unknown)"
    assert sum((cell.counts for cell in results.cells[0]), Counts()) == pool(row.scored)


@pytest.mark.parametrize("system", ["base", "=exp/a", "base=", "base= ,"])
def test_badly_written_system(system):
    with pytest.raises(UserError, match=r"name=decode_dir"):
        read_row(system, "wer", "none")


def test_unfinished_decode_is_refused(decode):
    folder = decode("a")
    (folder / "system.json").unlink()
    with pytest.raises(UserError, match="no system.json in .* run its decode again"):
        read_row(f"a={folder}", "wer", "none")


def test_system_facts_must_be_there(decode):
    with pytest.raises(UserError, match=r"system.json: 'trainable_parameters' is None, not a number"):
        read_row(f"a={decode('a', trainable_parameters=None)}", "wer", "none")
    with pytest.raises(UserError, match=r"'mean_active_experts' is 'two'"):
        read_row(f"a={decode('b', mean_active_experts='two')}", "wer", "none")


def test_old_system_file_without_a_date_takes_the_file_s(decode):
    folder = decode("a")
    facts = json.loads((folder / "system.json").read_text())
    del facts["date"]
    (folder / "system.json").write_text(json.dumps(facts))
    assert read_row(f"a={folder}", "wer", "none").decodes[0].date.startswith("20")


def test_folders_of_one_system_must_fit_together(decode):
    one, two, same = decode("one"), decode("two", adapter="exp/x"), decode("same")
    with pytest.raises(UserError, match="'adapter' differs"):
        read_row(f"a={one},{two}", "wer", "none")
    with pytest.raises(UserError, match="utterances in common"):
        read_row(f"a={one},{same}", "wer", "none")


def test_rows_must_fit_together(decode, rows, lines_of):
    with pytest.raises(UserError, match="'base' is given twice"):
        make_results([rows[1], rows[0], rows[0]], "us", BOOTSTRAP)
    with pytest.raises(UserError, match="no systems"):
        make_results([], "us", BOOTSTRAP)
    with pytest.raises(UserError, match="no utterance has the accent 'uk'; there are: be, de, us"):
        make_results(rows, "uk", BOOTSTRAP)
    short = read_row(f"short={decode('short', lines=lines_of(0.1, 1)[:-1])}", "wer", "none")
    with pytest.raises(UserError, match="'short' cannot stand beside 'base': .* 'utt-059' is in one alone"):
        make_results([*rows, short], "us", BOOTSTRAP)


def test_by_speaker_there_is_one_column_and_every_speaker_s_counts(rows):
    results = make_results(rows, None, BOOTSTRAP, by="speaker")
    assert results.columns == [ALL] == [results.compared_on]
    assert [cells[0].counts for cells in results.cells] == [pool(row.scored) for row in rows]
    assert list(results.speakers) == ["be2", "be5", "de1", "de4", "us0", "us3"]
    for name, summaries in results.speakers.items():
        for row, summary in zip(rows, summaries):
            assert summary.counts == pool(x for x in row.scored if x.hypothesis.speaker == name)


def test_by_speaker_needs_speakers(decode, lines_of):
    row = read_row(f"a={decode('a', lines=[line | {'speaker': ''} for line in lines_of(0.2, 1)])}", "wer", "none")
    with pytest.raises(UserError, match="no utterance has a speaker"):
        make_results([row], None, BOOTSTRAP, by="speaker")


def test_size_and_speed(decode, rows, lines_of):
    assert rows[0].megabytes is None and rows[0].milliseconds is None
    lines = lines_of(0.3, 1)
    facts = {"model_bytes": 2_000_000, "adaptation_bytes": 500_000}
    folders = [
        decode("some", lines=lines[:15], seconds_per_utterance=0.3, **facts),
        decode("rest", lines=lines[15:], seconds_per_utterance=0.1, **facts),
    ]
    row = read_row(f"a={folders[0]},{folders[1]}", "wer", "none")
    assert row.megabytes == 2.5 and row.milliseconds == pytest.approx(1000 * (15 * 0.3 + 45 * 0.1) / 60)
    assert read_row(f"a={decode('base2', model_bytes=3_000_000)}", "wer", "none").megabytes == 3.0

import pytest

from moe_asr.errors import UserError
from moe_asr.scoring.align import Counts
from moe_asr.scoring.language_results import DETECTED, TOLD, in_characters, make_language_results, relative
from moe_asr.scoring.language_tables import mean_cells, mean_header, render_languages
from moe_asr.scoring.results import read_row
from moe_asr.scoring.scored import group_by, pool
from moe_asr.scoring.significance import Bootstrap, compare_means, interval, mean_interval

BOOTSTRAP = Bootstrap(100)
UNITS = {"de": "wer", "fr": "wer", "th": "cer"}


def spoken(lines, detect=None):
    """The lines in three languages; with `detect`, every fourth utterance is taken for German."""
    for k, line in enumerate(lines):
        line["language"] = list(UNITS)[k % 3]
        line |= {"detected": "de" if k % 4 == 0 else line["language"]} if detect else {}
    return lines


@pytest.fixture
def systems(decode, lines_of):
    def make(name, rate, seed, detect=False, **facts):
        return f"{name}={decode(f'{name}-{detect}', lines=spoken(lines_of(rate, seed), detect), **facts)}"

    told = [
        make("base", 0.3, 1, model_bytes=2e6),
        make("lora", 0.1, 2, adaptation_bytes=3e5, seconds_per_utterance=0.5),
    ]
    return told, [make("base", 0.4, 3, True), make("lora", 0.2, 4, True)]


def test_numbers_are_those_of_their_parts(systems):
    results = make_language_results(*systems, "auto", "none", BOOTSTRAP)
    assert results.names == ["base", "lora"] and results.reference == "base"
    assert [(row.name, row.condition) for row in results.rows] == [
        ("base", TOLD), ("lora", TOLD), ("base", DETECTED), ("lora", DETECTED),
    ]  # fmt: skip
    for system, condition in zip((*systems[0], *systems[1]), (TOLD, TOLD, DETECTED, DETECTED)):
        row = results.find(system.split("=")[0], condition)
        groups = group_by(read_row(system, "auto", "none").scored, "language")
        assert {name: one.unit for name, one in row.languages.items()} == UNITS
        for name, members in groups.items():
            assert row.languages[name].counts == pool(members)
            assert row.languages[name].interval == interval(members, BOOTSTRAP)
        assert row.mean == pytest.approx(sum(pool(one).rate for one in groups.values()) / 3)
        assert row.mean_interval == mean_interval(list(groups.values()), BOOTSTRAP)
        assert row.pooled["wer"].counts == pool(groups["de"]) + pool(groups["fr"])
        assert row.pooled["cer"].counts == pool(groups["th"]) and set(row.pooled) == {"wer", "cer"}
        assert (row.identified is None) == (condition == TOLD)
    assert results.rows[2].identified.overall.rate == 1 - 10 / 60  # 15 taken for German, of which 5 are


def test_compared_with_the_reference_under_the_same_condition(systems):
    results = make_language_results(*systems, "auto", "none", BOOTSTRAP, against="lora")
    for condition, (base, lora) in zip((TOLD, DETECTED), systems):
        base, lora = (group_by(read_row(one, "auto", "none").scored, "language").values() for one in (base, lora))
        found = results.find("base", condition)
        assert found.against == compare_means(list(lora), list(base), BOOTSTRAP)
        assert relative(found.against) == pytest.approx(found.against.difference / found.against.first)
        assert relative(found.against) > 0 and relative(None) is None
        parts = [[in_characters(one) for one in groups] for groups in (lora, base)]
        assert found.characters_against == compare_means(*parts, BOOTSTRAP)
        assert results.find("lora", condition).against is None


def test_characters_of_words(systems):
    scored = read_row(systems[0][0], "auto", "none").scored
    for one, plain in zip(in_characters(scored), read_row(systems[0][0], "cer", "none").scored):
        assert one.counts == plain.counts and one.metric == "cer"
    row = make_language_results(*systems, "auto", "none", BOOTSTRAP).rows[0]
    groups = group_by(in_characters(scored), "language")
    assert row.characters == pytest.approx(sum(pool(one).rate for one in groups.values()) / 3)


def test_tables(systems, tmp_path):
    results = make_language_results(*systems, "auto", "none", BOOTSTRAP)
    base, lora = mean_cells(results)
    row = results.find("lora", TOLD)
    low, high = row.mean_interval
    assert len(lora) == len(mean_header())
    assert lora[1] == f"{100 * row.mean:.1f} [{100 * low:.1f}, {100 * high:.1f}]" and base[2:4] == ["-", "-"]
    assert (
        lora[2] == f"{100 * relative(row.against):+.1f}" and lora[-2:] == ["0.3", "500.0"] and base[-2:] == ["-", "-"]
    )
    assert lora[7] == "83.3"
    text = render_languages(results, tmp_path, "none", BOOTSTRAP)
    for part in ("th, CER", "pooled WER", "lora, language-agnostic**: git", "| th, characters |", "against it"):
        assert part in text
    assert str(tmp_path) not in text


def test_told_alone(systems):
    results = make_language_results(systems[0], [], "auto", "none", BOOTSTRAP)
    assert mean_cells(results)[0][4:8] == ["-"] * 4


def test_counts_of_an_utterance_without_reference(decode, lines_of):
    lines = spoken(lines_of(0.1, 1))
    for line in lines:
        line["ref"] = "" if line["language"] == "fr" else line["ref"]
    found = make_language_results([f"a={decode('a', lines=lines)}"], [], "auto", "none", BOOTSTRAP).rows[0]
    rates = [one.counts.rate for one in found.languages.values()]
    assert rates[1] is None and found.mean == pytest.approx((rates[0] + rates[2]) / 2)
    assert found.languages["fr"].counts.n == Counts().n


def test_bad_systems_are_one_line(systems, decode, lines_of):
    told, detected = systems
    with pytest.raises(UserError, match="no systems given"):
        make_language_results([], [], "auto", "none", BOOTSTRAP)
    with pytest.raises(UserError, match="'base' is given twice as language-aware"):
        make_language_results([told[0], told[0]], [], "auto", "none", BOOTSTRAP)
    with pytest.raises(UserError, match="against: there is no system 'x' among base, lora"):
        make_language_results(told, detected, "auto", "none", BOOTSTRAP, against="x")
    few = decode("few", lines=spoken(lines_of(0.1, 1))[:9])
    with pytest.raises(UserError, match="'few' cannot stand beside 'base': .*different utterances"):
        make_language_results(told, [f"few={few}"], "auto", "none", BOOTSTRAP)
    lines = lines_of(0.1, 1)
    lines[0]["language"] = ""
    with pytest.raises(UserError, match="'x' has utterances without a language"):
        make_language_results([f"x={decode('x', lines=lines)}"], [], "wer", "none", BOOTSTRAP)

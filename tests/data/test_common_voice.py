import dataclasses

import pytest

from moe_asr.data.common_voice import read_accent_groups, read_release, tally
from moe_asr.data.tables import read_table, write_table
from moe_asr.errors import UserError

HEADER = "client_id path sentence up_votes down_votes age gender accent locale".split()
GROUPS = "accent\tprovince\tgroup\n33\tZhejiang\tWu\n11\tBeijing\tBeijing\n"
ANNA, BERT = "a" * 128, "a" * 12 + "b" * 116


def line(client, path, sentence, accent="33", locale="zh-CN"):
    return "\t".join([client, path, sentence, "2", "0", "", "", accent, locale])


@pytest.fixture
def release(tmp_path):
    """Writes lists by name; clips one.ogg, two.mp3 and three.mp3 are there."""
    (tmp_path / "clips").mkdir()
    for name in ("one.ogg", "two.mp3", "three.mp3", "three.txt"):
        (tmp_path / "clips" / name).write_bytes(b"")

    def write(header=HEADER, **lists):
        for name, lines in lists.items():
            (tmp_path / f"{name}.tsv").write_text("\n".join(["\t".join(header), *lines]) + "\n", "utf-8")
        return tmp_path

    return write


def test_rows(release):
    folder = release(train=[line("c" * 128, "two.mp3", '他说："好"。'), line("d" * 128, "one.ogg", "好", "11", "")])
    part = read_release(folder, ["train"], language="zh")["train"]
    assert part.rejections == []
    assert dataclasses.asdict(part.rows[0]) == {
        "id": "two",
        "audio": str(folder / "clips/two.mp3"),
        "text": '他说："好"。',
        "speaker": "c" * 12,
        "accent": "33",
        "language": "zh-CN",
        "start": "",
        "duration": "",
        "line": 2,
        "problem": "",
    }
    assert part.rows[1].language == "zh" and part.rows[1].accent == "11"
    write_table(folder / "table.tsv", part.rows)
    assert [row.audio for row in read_table(folder / "table.tsv")] == [row.audio for row in part.rows]


def test_clips_with_another_extension(release):
    folder = release(train=[line(ANNA, "one.mp3", "x"), line(ANNA, "two.ogg", "x"), line(ANNA, "three", "x")])
    rows = read_release(folder, ["train"])["train"].rows
    assert [row.audio.rpartition("/")[2] for row in rows] == ["one.ogg", "two.mp3", "three.mp3"]
    assert [row.id for row in rows] == ["one", "two", "three"]
    (folder / "clips/one.mp3").write_bytes(b"")
    assert read_release(folder, ["train"])["train"].rows[0].audio.endswith("one.mp3")  # what the list says comes first


def test_accents_by_groups(release, tmp_path):
    (tmp_path / "groups.tsv").write_text(GROUPS, "utf-8")
    folder = release(train=[line(ANNA, "one.ogg", "x"), line(ANNA, "two.mp3", "x", "11")])
    rows = read_release(folder, ["train"], read_accent_groups(tmp_path / "groups.tsv"))["train"].rows
    assert [row.accent for row in rows] == ["Wu", "Beijing"]


def test_what_cannot_be_used_is_named_and_counted(release):
    lines = [
        line(ANNA, "one.ogg", "x"),
        line(ANNA, "two.mp3", "x", ""),
        line(ANNA, "two.mp3", "x", "99"),
        line(ANNA, "two.mp3", "x", "99"),
        line(ANNA, "four.mp3", "x"),
        line(ANNA, "two.mp3", " "),
        line(ANNA, "two.mp3", "x") + "\tmore",
    ]
    part = read_release(release(train=lines), ["train"], {"33": "Wu"})["train"]
    assert [row.id for row in part.rows] == ["one"]
    assert [(r.row.line, r.reason) for r in part.rejections] == [
        (3, "no accent"),
        (4, "unknown accent"),
        (5, "unknown accent"),
        (6, "missing clip"),
        (7, "empty sentence"),
        (8, "wrong number of fields"),
    ]
    assert tally(part.rejections) == (
        "2 unknown accent '99', 1 no accent, 1 missing clip, 1 empty sentence, 1 wrong number of fields"
    )
    assert tally([]) == ""
    with pytest.raises(UserError, match="dev.tsv: no line of it can be used: 2 unknown accent '99', 1 no accent$"):
        read_release(release(dev=lines[1:4]), ["dev"], {"33": "Wu"})
    with pytest.raises(UserError, match="dev.tsv: no line of it can be used: it is empty"):
        read_release(release(dev=[]), ["dev"])


def test_without_groups_an_accent_may_be_missing(release):
    assert read_release(release(train=[line(ANNA, "one.ogg", "x", "")]), ["train"])["train"].rows[0].accent == ""


def test_speakers_of_all_parts_have_different_names(release):
    folder = release(train=[line(ANNA, "one.ogg", "x")], test=[line(BERT, "two.mp3", "x"), line(ANNA, "one.ogg", "x")])
    parts = read_release(folder, ["train", "test"])
    names = {part: [row.speaker for row in found.rows] for part, found in parts.items()}
    assert names == {"train": ["a" * 13], "test": ["a" * 12 + "b", "a" * 13]}
    assert [row.speaker for row in read_release(folder, ["train"])["train"].rows] == ["a" * 12]


def test_later_releases_have_other_columns(release):
    header = "client_id path sentence_id sentence sentence_domain up_votes down_votes age gender accents variant locale"
    lines = ["\t".join([ANNA, "one.ogg", "7", "Hej", "", "2", "0", "", "", "Scanian", "", "sv-SE"])]
    row = read_release(release(header.split(), train=lines), ["train"])["train"].rows[0]
    assert (row.text, row.accent, row.language) == ("Hej", "Scanian", "sv-SE")


def test_line_separators_inside_a_sentence_do_not_end_it(release):
    folder = release(train=[line(ANNA, "one.ogg", "a\u2028b")])
    assert [row.text for row in read_release(folder, ["train"])["train"].rows] == ["a\u2028b"]


def test_a_wrong_place_is_one_line(release, tmp_path):
    folder = release(train=[line(ANNA, "one.ogg", "x")])
    with pytest.raises(UserError, match="no .*dev.tsv: get it from .*clips/"):
        read_release(folder, ["dev"])
    with pytest.raises(UserError, match="train.tsv: the header lacks sentence; is it a list of Common Voice"):
        read_release(release(["client_id", "path"], train=[]), ["train"])
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/train.tsv").write_text("\t".join(HEADER) + "\n")
    with pytest.raises(UserError, match="no folder .*elsewhere/clips"):
        read_release(tmp_path / "elsewhere", ["train"])


@pytest.mark.parametrize(
    "text, says",
    [
        (None, "no table of accents"),
        ("accent\tname\n", "expected a header with the columns accent and group"),
        ("accent\tgroup\n33\tWu\n33\tMin\n", ":3: expected one group for each accent"),
        ("accent\tgroup\n33\n", ":2: expected one group for each accent"),
    ],
)
def test_wrong_tables_of_accents(tmp_path, text, says):
    if text is not None:
        (tmp_path / "groups.tsv").write_text(text)
    with pytest.raises(UserError, match=says):
        read_accent_groups(tmp_path / "groups.tsv")

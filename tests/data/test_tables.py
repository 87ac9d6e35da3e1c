import pytest

from moe_asr.data.tables import Row, read_table, write_table
from moe_asr.errors import UserError


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_reads_columns_in_any_order(tmp_path):
    path = write(
        tmp_path / "t.tsv", "text\tid\taccent\taudio\nhello there\ta\tscottish\tw/a.wav\n你好\tb\t\t/x/b.wav\n"
    )
    assert read_table(path) == [
        Row("a", str(tmp_path / "w/a.wav"), "hello there", accent="scottish", line=2),
        Row("b", "/x/b.wav", "你好", line=3),
    ]


def test_what_is_written_is_read(tmp_path):
    rows = [
        Row("a", "/x/a.wav", 'one \u2028 two \x0b "three"', "s", "", "en", "0.5", "1.25", 2),
        Row("b", "/x/b", "", line=3),
    ]
    write_table(tmp_path / "t.tsv", rows)
    assert read_table(tmp_path / "t.tsv") == rows
    assert (
        (tmp_path / "t.tsv")
        .read_text(encoding="utf-8")
        .startswith("id\taudio\ttext\tspeaker\tlanguage\tstart\tduration\n")
    )


@pytest.mark.parametrize("value", ["a\tb", "a\nb", "a\rb"])
def test_writing_refuses_what_would_not_come_back(tmp_path, value):
    with pytest.raises(UserError, match="utterance a: a tab or line end"):
        write_table(tmp_path / "t.tsv", [Row("a", "/x", value)])


def test_byte_order_mark_windows_line_ends_and_empty_lines(tmp_path):
    path = write(tmp_path / "t.tsv", b"\xef\xbb\xbfid\taudio\ttext\r\n\r\na\t/a\thello\r\n")
    assert read_table(path) == [Row("a", "/a", "hello", line=3)]


def test_bad_lines_are_rows_with_a_problem(tmp_path):
    path = write(tmp_path / "t.tsv", b"id\taudio\ttext\na\t/a\tcaf\xe9\nb\t/b\nc\t/c\tx\ty\nd\t/d\tgood")
    latin, short, long, good = read_table(path)
    assert latin.problem == "not UTF-8: byte 0xe9 at position 8 of the line" and latin.id == "a"
    assert short.problem == "wrong number of fields: 2, but the header has 3" and short.id == "b"
    assert long.problem == "wrong number of fields: 4, but the header has 3"
    assert good.problem == "" and good.line == 5


@pytest.mark.parametrize(
    "header, message",
    [
        ("id\taudio", "the header lacks text"),
        ("", "the header lacks id, audio, text"),
        ("id,audio,text", "the header lacks id, audio, text"),
        ("id\taudio\ttext\tacent", "unknown or repeated columns acent"),
        ("id\taudio\ttext\ttext", "unknown or repeated columns"),
        ("id\taudio\ttext\tline", "unknown or repeated columns line"),
    ],
)
def test_bad_headers_are_refused(tmp_path, header, message):
    with pytest.raises(UserError, match=message):
        read_table(write(tmp_path / "t.tsv", header + "\n"))


def test_missing_table_says_what_it_should_be(tmp_path):
    with pytest.raises(UserError, match="no table at .* columns id, audio, text, speaker"):
        read_table(tmp_path / "t.tsv")

import gzip

import pytest

from moe_asr.data.lines import read_lines
from moe_asr.errors import UserError

TEXT = "one\r\n\n tw\u2028o \u00e9\x0c\n three"


@pytest.mark.parametrize("name, opened", [("a.txt", open), ("a.txt.gz", gzip.open)])
def test_lines_end_at_line_feeds_alone(tmp_path, name, opened):
    for text in (TEXT, TEXT + "\n"):
        with opened(tmp_path / name, "wb") as file:
            file.write(text.encode())
        assert list(read_lines(tmp_path / name)) == ["one", "", " tw\u2028o \u00e9\x0c", " three"]
    opened(tmp_path / name, "wb").close()
    assert list(read_lines(tmp_path / name)) == []


def test_the_line_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\ntwo\ncaf\xe9\n")
    with pytest.raises(UserError, match=r"a.txt:3: not UTF-8; convert the file"):
        list(read_lines(tmp_path / "a.txt"))


def test_a_damaged_gzip_file_is_one_line(tmp_path):
    path = tmp_path / "a.gz"
    whole = gzip.compress(bytes(range(128)) * 9 + b"\n")
    bad_block = bytearray(whole)
    bad_block[10] |= 6  # a kind of block that there is not
    for content in (whole[:-9], b"plain text\n", bytes(bad_block)):
        path.write_bytes(content)
        with pytest.raises(UserError, match="a.gz is damaged or cut off: ") as error:
            list(read_lines(path))
        assert "\n" not in str(error.value)

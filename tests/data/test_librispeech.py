import pytest

from moe_asr.data.librispeech import read_part, read_readers
from moe_asr.errors import UserError

SPEAKERS = """\
; Some pipe(|) separated metadata
;ID  |SEX|     SUBSET      |MINUTES| NAME
19   | F | train-clean-100  | 25.19 | Kara Shallenberg
60   | M | train-clean-100  | 20.18 | |CBW|Simon
115  | F | train-clean-360  | 25.10 | Another
"""


@pytest.fixture
def corpus(tmp_path):
    """Speakers 19 and 118 of train-clean-100, in chapters 9 and 10, which sort otherwise as text."""
    for speaker in ("118", "19"):
        for chapter in ("10", "9"):
            folder = tmp_path / "train-clean-100" / speaker / chapter
            folder.mkdir(parents=True)
            lines = [f"{speaker}-{chapter}-{n:04d} WORDS OF {n}" for n in range(2)]
            (folder / f"{speaker}-{chapter}.trans.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "SPEAKERS.TXT").write_text(SPEAKERS)
    return tmp_path


def test_reads_a_part_in_order(corpus):
    rows = read_part(corpus, "train-clean-100")
    assert [row.id for row in rows[:5]] == ["19-9-0000", "19-9-0001", "19-10-0000", "19-10-0001", "118-9-0000"]
    assert rows[0].text == "WORDS OF 0" and rows[0].speaker == "19" and rows[0].language == "en"
    assert rows[0].audio == str(corpus / "train-clean-100/19/9/19-9-0000.flac")


def test_takes_only_the_speakers_wanted(corpus):
    assert {row.speaker for row in read_part(corpus, "train-clean-100", ["118"])} == {"118"}


def test_readers(corpus):
    readers = read_readers(corpus)
    assert readers["60"].name == "|CBW|Simon" and readers["115"].part == "train-clean-360" and readers["19"].sex == "F"


@pytest.mark.parametrize(
    "speaker, says", [("115", "is in train-clean-360"), ("7", "is not in SPEAKERS.TXT"), ("60", "folder is missing")]
)
def test_an_unknown_speaker_is_one_line(corpus, speaker, says):
    with pytest.raises(UserError, match=f"no speaker {speaker} in .*train-clean-100.*{says}"):
        read_part(corpus, "train-clean-100", ["19", speaker])


def test_a_wrong_place_is_one_line(corpus, tmp_path):
    with pytest.raises(UserError, match="no folder .*dev-clean: get it from .*--corpus_dir"):
        read_part(corpus, "dev-clean")
    (corpus / "dev-clean").mkdir()
    with pytest.raises(UserError, match="holds no speaker's folder"):
        read_part(corpus, "dev-clean")
    with pytest.raises(UserError, match="no .*SPEAKERS.TXT"):
        read_readers(corpus / "train-clean-100")


def test_damaged_lists_are_one_line(corpus):
    path = corpus / "train-clean-100/19/9/19-9.trans.txt"
    path.write_text("19-9-0000 GOOD\n20-9-0001 BAD\n")
    with pytest.raises(UserError, match="19-9.trans.txt:2: expected '19-9-0000 TEXT'"):
        read_part(corpus, "train-clean-100")
    path.write_bytes(b"19-9-0000 CAF\xc9\n")
    with pytest.raises(UserError, match="19-9.trans.txt:1: not UTF-8"):
        read_part(corpus, "train-clean-100")
    path.unlink()
    with pytest.raises(UserError, match="no transcript .*19-9.trans.txt"):
        read_part(corpus, "train-clean-100")
    (corpus / "SPEAKERS.TXT").write_text("19 F train-clean-100\n")
    with pytest.raises(UserError, match="SPEAKERS.TXT:1: expected 'number"):
        read_readers(corpus)
    (corpus / "SPEAKERS.TXT").write_bytes(b";\n19 | F | train-clean-100 | 25 | Zo\xeb\n")
    with pytest.raises(UserError, match="SPEAKERS.TXT:2: not UTF-8"):
        read_readers(corpus)

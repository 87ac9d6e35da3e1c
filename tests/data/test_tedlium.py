import pytest

from moe_asr.data.tedlium import clean, find_talk, find_talks, person, read_talk
from moe_asr.errors import UserError

STM = """\
;; a comment
Anna_2001 1 Anna_2001 20.25 22.50 <o,f0,female> and it 's(2) {NOISE} over <unk>

Anna_2001 1 inter_segment_gap 0 10.5 <o,,unknown> ignore_time_segment_in_scoring
Anna_2001 1 Anna_2001 10.5 14.03 <o,f0,female> hello
Anna_2001 1 Anna_2001 30.00 31.00 <o,f0,female> ignore_time_segment_in_scoring
Anna_2001 1 Anna_2001 32.00 33.00 <o,f0,female>
"""


@pytest.fixture
def corpus(tmp_path):
    """One talk in legacy/train, and one whose recording is in data/ alone."""
    talks = {"legacy/train/stm/Anna_2001": "legacy/train/sph", "speaker-adaptation/test/Bob_2002": "data/sph"}
    for stm, sph in talks.items():
        path = tmp_path / f"{stm}.stm"
        path.parent.mkdir(parents=True)
        path.write_text(STM.replace("Anna_2001", path.stem))
        (tmp_path / sph).mkdir(parents=True)
        (tmp_path / sph / f"{path.stem}.sph").touch()
    return tmp_path


def test_reads_segments_in_order_without_gaps(corpus):
    rows = read_talk(corpus / "legacy/train/stm/Anna_2001.stm")
    assert [(row.id, row.start, row.duration, row.text) for row in rows] == [
        ("Anna_2001-0001050-0001403", "10.50", "3.53", "hello"),
        ("Anna_2001-0002025-0002250", "20.25", "2.25", "and it's over"),
        ("Anna_2001-0003200-0003300", "32.00", "1.00", ""),  # rejected later, and listed
    ]
    assert rows[0].audio == str(corpus / "legacy/train/sph/Anna_2001.sph") and rows[0].speaker == "Anna_2001"


@pytest.mark.parametrize(
    "text, words",
    [
        ("we 've seen what they 'd do", "we've seen what they'd do"),
        ("rock 'n' roll 'til 'tis", "rock 'n' roll 'til 'tis"),
        ("the(2) <sil> {SMACK} end [laughter]", "the end"),
        ("{COUGH}", ""),
        ("the parents ' house", "the parents ' house"),
    ],
)
def test_clean(text, words):
    assert clean(text) == words


def test_finds_talks(corpus):
    assert [path.stem for path in find_talks(corpus, "train")] == ["Anna_2001"]
    assert find_talk(corpus, "Bob_2002") == corpus / "speaker-adaptation/test/Bob_2002.stm"
    assert find_talk(corpus, "Anna_2001") == corpus / "legacy/train/stm/Anna_2001.stm"
    assert {row.audio for row in read_talk(find_talk(corpus, "Bob_2002"))} == {str(corpus / "data/sph/Bob_2002.sph")}
    assert person("MarcGoodman_2012G") == "MarcGoodman"


def test_the_place_expected_is_named(corpus):
    with pytest.raises(UserError, match="no talk Carl_2003.stm in .*speaker-adaptation .*--corpus_dir"):
        find_talk(corpus, "Carl_2003")
    with pytest.raises(UserError, match="no .stm file in .*legacy/dev/stm: get it"):
        find_talks(corpus, "dev")
    (corpus / "data/sph/Bob_2002.sph").unlink()
    (row, *_) = read_talk(find_talk(corpus, "Bob_2002"))
    assert row.audio == str(corpus / "speaker-adaptation/sph/Bob_2002.sph")  # told by the check of the audio


@pytest.mark.parametrize("line", ["Anna_2001 1 Anna_2001 x 3 <o> a", "Anna_2001 1"])
def test_a_damaged_transcript_is_one_line(corpus, line):
    path = corpus / "legacy/train/stm/Anna_2001.stm"
    path.write_text(STM + line)
    with pytest.raises(UserError, match=":8: expected 'talk channel speaker"):
        read_talk(path)
    path.write_text(";;\n")
    with pytest.raises(UserError, match="no segment"):
        read_talk(path)
    path.write_bytes(STM.replace("over", "caf\u00e9").encode("latin-1"))
    with pytest.raises(UserError, match="Anna_2001.stm:2: not UTF-8"):
        read_talk(path)

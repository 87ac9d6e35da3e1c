import pytest

from moe_asr.data.aishell import PARTS, read_part
from moe_asr.data.text import normalise
from moe_asr.errors import UserError

TEXTS = {
    ("train", "S0002", "BAC009S0002W0122"): "而 对 楼市 成交",
    ("train", "S0002", "BAC009S0002W0123"): "ｂ 型 血",
    ("train", "S0003", "BAC009S0003W0121"): "",  # not in the list
    ("dev", "S0724", "BAC009S0724W0121"): "广州市",
    ("test", "S0764", "BAC009S0764W0121"): "甚至 出现",
}


@pytest.fixture
def corpus(tmp_path, make_audio):
    transcripts = tmp_path / "data_aishell/transcript/aishell_transcript_v0.8.txt"
    transcripts.parent.mkdir(parents=True)
    transcripts.write_text("".join(f"{name} {text}\n" for (*_, name), text in TEXTS.items() if text), "utf-8")
    for part, speaker, name in TEXTS:
        (tmp_path / f"data_aishell/wav/{part}/{speaker}").mkdir(parents=True, exist_ok=True)
        make_audio(f"data_aishell/wav/{part}/{speaker}/{name}.wav", 0.3)
    return tmp_path


def test_rows(corpus):
    rows = read_part(corpus, "train")
    assert [row.id for row in rows] == ["BAC009S0002W0122", "BAC009S0002W0123", "BAC009S0003W0121"]
    assert [row.text for row in rows] == ["而 对 楼市 成交", "ｂ 型 血", ""]  # empty: rejected and listed by the checks
    assert rows[0].audio == str(corpus / "data_aishell/wav/train/S0002/BAC009S0002W0122.wav")
    assert (rows[0].speaker, rows[0].accent, rows[0].language) == ("S0002", "Mandarin", "zh")
    assert read_part(corpus, "dev", accent="general")[0].accent == "general"


def test_the_same_as_lhotse(corpus):
    lhotse = pytest.importorskip("lhotse.recipes.aishell")
    pytest.importorskip("opencc")
    found = lhotse.prepare_aishell(corpus)
    assert set(found) == set(PARTS)
    for part in PARTS:
        recordings = found[part]["recordings"]
        theirs = {
            (s.id, normalise("mandarin", s.text), s.speaker, recordings[s.recording_id].sources[0].source)
            for s in found[part]["supervisions"]
        }
        ours = {(r.id, normalise("mandarin", r.text), r.speaker, r.audio) for r in read_part(corpus, part) if r.text}
        assert ours == theirs


def test_a_wrong_place_is_one_line(corpus, tmp_path):
    with pytest.raises(UserError, match="no .*aishell_transcript_v0.8.txt: get it from .*openslr.org/33"):
        read_part(tmp_path / "elsewhere", "train")
    with pytest.raises(UserError, match="no recordings such as .*S0002"):
        read_part(corpus, "other")
    (corpus / "data_aishell/wav/S0002.tar.gz").write_bytes(b"")
    with pytest.raises(UserError, match="no recordings in .*, but archives beside it: unpack"):
        read_part(corpus, "other")
    (corpus / "data_aishell/transcript/aishell_transcript_v0.8.txt").write_text("BAC009S0002W0999 x\n")
    with pytest.raises(UserError, match="has no transcript of a recording in .*dev"):
        read_part(corpus, "dev")

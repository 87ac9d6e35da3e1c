import pytest

from moe_asr.data.checks import CheckConfig, check
from moe_asr.data.kespeech import PARTS, STANDARD, SUBDIALECTS, read_part
from moe_asr.data.tables import read_table, write_table
from moe_asr.errors import UserError

UTTERANCES = {  # name: (text, sub-dialect)
    "1000001_0a": ("今天天气很好", "Mandarin"),
    "1000001_0b": ("<SPOKEN_NOISE> 我去学校", "Mandarin"),
    "1001001_0c": ("你好", "Jiao-Liao"),
}


@pytest.fixture
def corpus(tmp_path, make_audio):
    """Part test with three utterances of two speakers."""
    folder = tmp_path / "Tasks/ASR/test"
    folder.mkdir(parents=True)
    lists = {name: "" for name in ("text", "wav.scp", "utt2spk", "utt2subdialect")}
    for name, (text, subdialect) in UTTERANCES.items():
        speaker = name[:7]
        (tmp_path / f"Audio/{speaker}/phase1").mkdir(parents=True, exist_ok=True)
        make_audio(f"Audio/{speaker}/phase1/{name}.wav", 0.3)
        values = (text, f"Audio/{speaker}/phase1/{name}.wav", speaker, subdialect)
        for file, value in zip(lists, values):
            lists[file] += f"{name} {value}\n"
    for file, text in lists.items():
        (folder / file).write_text(text, "utf-8")
    return tmp_path


def test_rows(corpus):
    rows = read_part(corpus, "test")
    assert [(row.id, row.text, row.accent, row.speaker) for row in rows] == [
        ("1000001_0a", "今天天气很好", "Mandarin", "1000001"),
        ("1000001_0b", "我去学校", "Mandarin", "1000001"),
        ("1001001_0c", "你好", "Jiao-Liao", "1001001"),
    ]
    assert rows[2].audio == str(corpus / "Audio/1001001/phase1/1001001_0c.wav") and rows[2].language == "zh"
    assert len(SUBDIALECTS) == 8 and STANDARD not in SUBDIALECTS


def test_the_same_as_lhotse(corpus):
    lhotse = pytest.importorskip("lhotse.recipes.kespeech")
    found = lhotse.prepare_kespeech(corpus, None, ["test"])["test"]
    theirs = {
        (s.id, s.text.strip(), s.language, s.speaker, found["recordings"][s.recording_id].sources[0].source)
        for s in found["supervisions"]
    }
    assert {(r.id, r.text, r.accent, r.speaker, r.audio) for r in read_part(corpus, "test")} == theirs
    assert lhotse.KE_SPEECH_PARTS == PARTS


def test_an_empty_transcript_and_a_broken_recording_are_rejected_and_the_rest_goes_on(corpus):
    path = corpus / "Tasks/ASR/test/text"
    path.write_text(path.read_text("utf-8").replace(" 今天天气很好", " "), "utf-8")
    (corpus / "Audio/1001001/phase1/1001001_0c.wav").write_bytes(b"RIFF")
    write_table(corpus / "test.tsv", read_part(corpus, "test"))
    utterances, rejections = check(read_table(corpus / "test.tsv"), "multilingual", CheckConfig())
    assert [u.id for u in utterances] == ["1000001_0b"]
    assert [(r.row.id, r.reason) for r in rejections][0] == ("1000001_0a", "empty text")
    assert [r.row.id for r in rejections] == ["1000001_0a", "1001001_0c"]


def test_a_wrong_place_is_one_line(corpus):
    with pytest.raises(UserError, match="no folder .*train_phase1: apply for KeSpeech as .* accept its licence"):
        read_part(corpus, "train_phase1")
    folder = corpus / "Tasks/ASR/test"
    whole = (folder / "utt2subdialect").read_text("utf-8")
    (folder / "utt2subdialect").write_text(whole.replace("1001001_0c", "1001001_0d"), "utf-8")
    with pytest.raises(UserError, match="utt2subdialect: nothing for utterance 1001001_0c"):
        read_part(corpus, "test")
    (folder / "utt2subdialect").unlink()
    with pytest.raises(UserError, match="no file .*utt2subdialect"):
        read_part(corpus, "test")
    (folder / "utt2subdialect").write_text(whole, "utf-8")
    (folder / "text").write_text("")
    with pytest.raises(UserError, match="text is empty"):
        read_part(corpus, "test")

import pytest

from moe_asr.data.kaldi_folder import read_kaldi_folder, read_map
from moe_asr.errors import UserError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "text").write_text("u1\tWE CALL IT\nu2  BEAR \n")
    (tmp_path / "wav.scp").write_text("u1 WAVE/u1.wav\nu2 /far/u2.wav\nu3 u3.wav\n")
    (tmp_path / "utt2spk").write_text("u1\t0001\nu2\t0002\n")
    return tmp_path


def test_reads_rows(folder, tmp_path):
    first, second = read_kaldi_folder(folder, tmp_path / "root")
    assert (first.id, first.text, first.speaker) == ("u1", "WE CALL IT", "0001")
    assert first.audio == str(tmp_path / "root/WAVE/u1.wav") and second.audio == "/far/u2.wav" and second.text == "BEAR"


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("wav.scp", "u1 a.wav\n", "wav.scp: nothing for utterance u2"),
        ("utt2spk", "u1 s\nu2\n", "utt2spk: nothing for utterance u2"),
        ("wav.scp", "u1 sox a.wav |\nu2 b.wav\n", "u1 is a command"),
        ("text", "u1 a\nu1 b\n", "text:2: u1 is there twice"),
    ],
)
def test_what_is_wrong_is_one_line(folder, name, content, says):
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=says.replace(".", r"\.")):
        read_kaldi_folder(folder, folder)


def test_missing_and_broken_files(folder):
    with pytest.raises(UserError, match="no file .*spk2age: expected a Kaldi data folder"):
        read_map(folder / "spk2age")
    (folder / "text").write_bytes(b"u1 \xff\n")
    with pytest.raises(UserError, match="text:1: not UTF-8"):
        read_map(folder / "text")

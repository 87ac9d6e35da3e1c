"""Tables and lists of corpora: a line in them is a row, or refused, or listed with the reason; never a crash."""

import dataclasses
import math

import pytest
from hostile import REFUSED, attempt, files, hostile
from hypothesis import example, given
from hypothesis import strategies as st

from moe_asr.data import aishell, common_voice, kespeech, librispeech, tedlium
from moe_asr.data.kaldi_folder import read_kaldi_folder
from moe_asr.data.lines import is_name, parse_number
from moe_asr.data.splits import read_parts, read_speakers
from moe_asr.data.tables import read_table, write_table

TABLE = (
    "id\taudio\ttext\tspeaker\taccent\tstart\tduration\n"
    "a1\ta/1.wav\thello world\tanna\tscottish\t\t1.5\n"
    "a2\t/x/2.flac\tйö 你好 e\u0301\tbjörn\t\t2.25\t3\n"
).encode()
TEXT, WAVS, SPEAKERS = b"u1 hello\nu2 two words\n", b"u1 WAV/a b.wav\nu2 /x/2.wav\n", b"u1 anna\nu2 ben\n"
STM = (
    ";; a comment\nTalk 1 Talk 0.00 2.5 <o,f0,male> ignore_time_segment_in_scoring\n"
    "Talk 1 Talk 2.50 7.25 <o,f0,male> it 's {NOISE} the(2) <unk> end\nTalk 1 Talk 7.3 9 <o,f0,male> more\n"
).encode()
READERS = b";ID |SEX| SUBSET |MINUTES| NAME\n19   | F | dev | 25.19 | Kara | Shallenberg\n20 | M | dev | 3 | B\n"
CHAPTER = b"19-198-0000 NORTHANGER ABBEY\n19-198-0001 THIS LITTLE WORK\n"
CLIPS = (
    "client_id\tpath\tsentence\tup_votes\taccents\tlocale\n"
    f'{"a" * 128}\tc1.mp3\tHello, world\t2\tEngland\ten\n{"b" * 128}\tc2.mp3\t"Yes"\t2\t\ten\n'
).encode()
GROUPS = "accent\tname\tgroup\n110000\tBeijing\tnorth\n440000\tGuangdong\tyue\n".encode()


@pytest.fixture
def put(tmp_path):
    """Writes a file below tmp_path, and returns its path."""

    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    return write


def check_rows(rows, tmp_path):
    """Rows can be written as a table, which reads them as they are: nothing in them is lost or runs into the next."""
    if rows is REFUSED or attempt(write_table, tmp_path / "again.tsv", rows) is REFUSED:
        return
    for row, again in zip(rows, read_table(tmp_path / "again.tsv"), strict=True):
        row = {name: value.strip() for name, value in dataclasses.asdict(row).items() if isinstance(value, str)}
        again = dataclasses.asdict(again)
        assert row == {name: again[name] for name in row}


@hostile
@given(content=files(TABLE, signs=["\t", "\t\t", "id", "audio"]))
def test_table(content, put, tmp_path):
    rows = attempt(read_table, put("t.tsv", content))
    if rows is REFUSED:
        return
    lines = [line for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n")[1:] if line.strip()]
    assert len(rows) == len(lines), "every line is a row"
    bad = {i for i, row in enumerate(rows) if row.problem}
    assert bad == {i for i, line in enumerate(lines) if not fits(line, content)}
    check_rows([row for row in rows if not row.problem], tmp_path)


def fits(line, content):
    """Whether a line is UTF-8 and has as many fields as the header."""
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return line.count(b"\t") == content.split(b"\n")[0].count(b"\t")


@hostile
@given(contents=st.tuples(files(TEXT), files(WAVS, signs=["sox a.wav |"]), files(SPEAKERS)), which=st.integers(0, 2))
def test_kaldi_folder(contents, which, put, tmp_path):
    for i, (name, good) in enumerate([("text", TEXT), ("wav.scp", WAVS), ("utt2spk", SPEAKERS)]):
        put(f"k/{name}", contents[i] if i == which else good)
    rows = attempt(read_kaldi_folder, tmp_path / "k", tmp_path)
    assert rows is REFUSED or all(row.speaker and row.audio and not row.audio.endswith("|") for row in rows)
    check_rows(rows, tmp_path)


@hostile
@given(
    content=files(SPEAKERS, signs=["Mandarin", "Ji-Lu"]), which=st.sampled_from(["text", "utt2subdialect", "utt2spk"])
)
def test_kespeech(content, which, put, tmp_path):
    part = "Tasks/ASR/test"
    for name in ("text", "wav.scp", "utt2spk", "utt2subdialect"):
        put(f"{part}/{name}", content if name == which else SPEAKERS)
    rows = attempt(kespeech.read_part, tmp_path, "test")
    assert rows is REFUSED or (rows and all(row.accent and row.speaker for row in rows))
    check_rows(rows, tmp_path)


@hostile
@given(content=files(b"BAC009S0002W0122 \xe4\xbd\xa0 \xe5\xa5\xbd\nBAC009S0002W0123 hi\n"))
def test_aishell(content, put, tmp_path):
    for name in ("BAC009S0002W0122", "BAC009S0002W0123"):
        put(f"data_aishell/wav/dev/S0002/{name}.wav", b"")
    put("data_aishell/transcript/aishell_transcript_v0.8.txt", content)
    rows = attempt(aishell.read_part, tmp_path, "dev")
    assert rows is REFUSED or len(rows) == 2
    check_rows(rows, tmp_path)


@hostile
@given(content=files(CHAPTER, signs=["19-198-", "/../", "\u0664"]))
def test_librispeech_transcripts(content, put, tmp_path):
    put("dev/19/198/19-198.trans.txt", content)
    rows = attempt(librispeech.read_part, tmp_path, "dev")
    if rows is not REFUSED:
        folder = str(tmp_path / "dev/19/198/19-198-")
        assert rows and all(is_name(row.id) and row.audio.startswith(folder) and "/" not in row.id for row in rows)
    check_rows(rows, tmp_path)


@hostile
@given(content=files(READERS, signs=[" | ", "19", "\u0664"]))
def test_librispeech_readers(content, put, tmp_path):
    put("SPEAKERS.TXT", content)
    readers = attempt(librispeech.read_readers, tmp_path)
    lines = [line for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip() and line[:1] != b";"]
    assert readers is REFUSED or len(readers) == len([line for line in lines if line.decode().strip()])


@hostile
@given(content=files(STM, signs=["nan", "1e400", "<o>"]))
@example(content=STM.replace(b"2.50 7.25", b"7.25 2.50"))  # found: a segment that ends before it begins
@example(content=STM.replace(b"7.25", b"nan"))  # found: a traceback
@example(content=STM.replace(b"7.25", b"1_0"))  # found: taken for 10
def test_stm(content, put, tmp_path):
    rows = attempt(tedlium.read_talk, put("stm/Talk.stm", content))
    if rows is not REFUSED:
        assert rows and all(float(row.start) >= 0 and float(row.duration) >= 0 for row in rows)
        assert rows == sorted(rows, key=lambda row: float(row.start))
    check_rows(rows, tmp_path)


@hostile
@given(content=files(CLIPS, signs=["\t", "c1.mp3", "accents", "accent", "path"]))
def test_common_voice(content, put, tmp_path):
    put("clips/c1.mp3", b"")
    put("clips/c2.ogg", b"")
    put("train.tsv", content)
    release = attempt(common_voice.read_release, tmp_path, ["train"], None, "en")
    if release is not REFUSED:
        part = release["train"]
        lines = [line for line in content.split(b"\n")[1:] if line.decode().strip("\r\n").strip()]
        assert len(part.rows) + len(part.rejections) == len(lines), "a line is neither a row nor rejected"
        assert all(row.text and row.audio for row in part.rows) and all(r.reason for r in part.rejections)
        check_rows(part.rows, tmp_path)


@hostile
@given(content=files(GROUPS, signs=["\t", "group", "accent"]))
@example(content=b"group\taccent\nnorth\n")  # found: a traceback where the accent is not the first column
def test_accent_groups(content, put):
    groups = attempt(common_voice.read_accent_groups, put("g.tsv", content))
    assert groups is REFUSED or all(accent and group for accent, group in groups.items())


@hostile
@given(content=files(b"anna # of the test set\n\nben\n"))
def test_speakers(content, put):
    names = attempt(read_speakers, put("speakers.txt", content))
    assert names is REFUSED or (names and len(set(names)) == len(names) and all(n == n.strip() for n in names))


@hostile
@given(parts=st.lists(st.one_of(st.text(max_size=8), st.sampled_from(["a=0.5", "b=0.5", "c=0_1", "d=nan", "=1"]))))
def test_parts(parts):
    found = attempt(read_parts, parts)
    assert found is REFUSED or (all(found) and math.isclose(sum(found.values()), 1, abs_tol=1e-6))


@hostile
@given(text=st.one_of(st.text(max_size=6), st.from_regex(r"[-+0-9._einfa]{0,9}", fullmatch=True), st.floats().map(str)))
def test_numbers(text):
    try:
        value = parse_number(text)
    except ValueError:
        return
    assert math.isfinite(value) and text.isascii() and value == float(text) and "_" not in text

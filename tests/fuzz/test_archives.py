"""Archives: what is unpacked lies in its folder, is what went in, and is no link out, device or bomb."""

import gzip
import io
import os
import tarfile
import zipfile

import pytest
from hostile import REFUSED, attempt, damaged, hostile
from hypothesis import example, given
from hypothesis import strategies as st

from moe_asr.data import archives
from moe_asr.data.archives import extract
from moe_asr.errors import UserError

FILES = {"Corpus/a.txt": b"one", "Corpus/deep/b.wav": bytes(range(256)) * 4, "LIST": b""}


def tar_of(members, mode="w"):
    """Members are (name, content), or (name, type, link)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=tarfile.PAX_FORMAT) as file:
        for name, *rest in members:
            info = tarfile.TarInfo(name)
            if isinstance(rest[0], bytes) and len(rest) == 1:
                info.size = len(rest[0])
                file.addfile(info, io.BytesIO(rest[0]))
            else:
                info.type, info.linkname = rest
                file.addfile(info)
    return buffer.getvalue()


def zip_of(members, mode=0o644):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.external_attr, info.compress_type = mode << 16, zipfile.ZIP_DEFLATED
            file.writestr(info, content)
    return buffer.getvalue()


TAR, ZIP = tar_of(FILES.items()), zip_of(FILES.items())
GZ = gzip.compress(TAR, mtime=0)


def unpacked(content, tmp_path):
    """The files, or REFUSED; nothing is anywhere else, nothing leads anywhere else."""
    (tmp_path / "a").write_bytes(content)
    out = tmp_path / "in" / "out"
    result = attempt(extract, tmp_path / "a", out)
    assert sorted(p.name for p in tmp_path.iterdir()) in (["a", "in"], ["a"])
    assert [p.name for p in (tmp_path / "in").iterdir()] == ([] if result is REFUSED else ["out"])
    if result is REFUSED:
        return REFUSED
    for path in out.rglob("*"):
        assert os.path.realpath(path).startswith(f"{os.path.realpath(out)}/"), f"{path} leads out"
        assert path.is_symlink() or path.is_file() or path.is_dir()
    found = {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    for path in sorted(out.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    out.rmdir()
    return found


@hostile
@given(content=damaged(GZ))
def test_damaged_tar_gz(content, tmp_path):
    found = unpacked(content, tmp_path)
    assert found is REFUSED or found == FILES, "its checksum covers all of it"


@hostile
@given(content=damaged(ZIP))
def test_damaged_zip(content, tmp_path):
    found = unpacked(content, tmp_path)
    assert found is REFUSED or set(found.values()) <= {*FILES.values()}, "checksums cover what is in its files"


@hostile
@given(content=damaged(TAR))
@example(content=TAR[: 2 * 512])  # found: an archive cut off after a file counted as whole
@example(content=TAR[:600] + b"x" + TAR[601:])
def test_damaged_tar(content, tmp_path):
    found = unpacked(content, tmp_path)
    assert found is REFUSED or len(found) <= len(FILES) + 1


names = st.sampled_from(
    ["a", "a/b", "../a", "/tmp/x", "a/../b", "./a", "", ".", "..", "C:/x", "a\\..\\..\\b", "b", "a\nb"]
)
links = st.sampled_from(["a", ".", "..", "../..", "/etc/passwd", "b/..", "a/b", "../a", "../b/../../x", "", "b"])
kinds = st.sampled_from([tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE])
members = st.one_of(st.tuples(names, st.binary(max_size=4)), st.tuples(names, kinds, links))


@hostile
@given(members=st.lists(members, max_size=5))
@example(members=[("b", tarfile.SYMTYPE, "."), ("a", tarfile.SYMTYPE, "b/.."), ("a/x", b"out")])
@example(members=[("b", tarfile.SYMTYPE, "."), ("a", tarfile.SYMTYPE, "b/../..")])
@example(members=[("a", tarfile.SYMTYPE, "/etc"), ("a/passwd", b"x")])
@example(members=[("a", tarfile.LNKTYPE, "../../secret")])
def test_tar_of_anything(members, tmp_path):
    (tmp_path / "in").mkdir(exist_ok=True)
    unpacked(tar_of(members), tmp_path)


@hostile
@given(members=st.lists(st.tuples(names.filter(bool), st.binary(max_size=4)), max_size=5))
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_zip_of_anything(members, tmp_path):
    unpacked(zip_of(members), tmp_path)


def test_links_within_the_folder_are_kept(tmp_path):
    content = tar_of([("c/a.txt", b"one"), ("d/l", tarfile.SYMTYPE, "../c/a.txt"), ("e", tarfile.LNKTYPE, "c/a.txt")])
    assert unpacked(content, tmp_path) == {"c/a.txt": b"one", "d/l": b"one", "e": b"one"}


@pytest.mark.parametrize("mode", [0o120777, 0o020644, 0o010644])
def test_links_and_devices_in_a_zip_are_refused(mode, tmp_path):
    assert unpacked(zip_of([("a", b"/etc/passwd")], mode), tmp_path) is REFUSED


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_bombs_are_refused_before_they_fill_the_disk(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "SLACK", 1 << 16)
    members = [(str(i), bytes(1 << 20)) for i in range(8)]
    content = zip_of(members) if kind == "zip" else gzip.compress(tar_of(members), 9)
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(UserError, match="holds over 100 times its own size"):
        extract(tmp_path / "a", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_no_room_is_told_before(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(ZIP)
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda folder: Room())
    with pytest.raises(UserError, match="no room to unpack"):
        extract(tmp_path / "a", tmp_path / "out")


class Room:
    free = 100


def test_a_password_is_no_traceback(tmp_path):
    content = bytearray(ZIP)
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + place] |= 1
    assert unpacked(bytes(content), tmp_path) is REFUSED

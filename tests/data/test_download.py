import hashlib
import io
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from moe_asr.data.archives import extract
from moe_asr.data.download import download, fetch
from moe_asr.errors import UserError

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT, notes what was asked for, and can break off or ignore ranges."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges, self.break_after, self.ignore_ranges = [], None, False

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/corpus.zip"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and not self.server.ignore_ranges else 0
        body = CONTENT[start:]
        if start and not body:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.break_after])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_downloads_once(server, tmp_path):
    for _ in range(2):
        download(server.url, tmp_path / "new" / "c.zip", SHA256)
    assert (tmp_path / "new" / "c.zip").read_bytes() == CONTENT
    assert server.ranges == [None] and len(list((tmp_path / "new").iterdir())) == 1


def test_without_checksum_takes_what_comes(server, tmp_path):
    for _ in range(2):
        download(server.url, tmp_path / "c.zip", None)
    assert (tmp_path / "c.zip").read_bytes() == CONTENT and len(server.ranges) == 1


def test_goes_on_where_it_stopped(server, tmp_path):
    server.break_after = 300_000
    with pytest.raises(UserError, match="300000 of 1024000 bytes.*run again to go on"):
        download(server.url, tmp_path / "c.zip", SHA256)
    assert not (tmp_path / "c.zip").exists()
    server.break_after = None
    download(server.url, tmp_path / "c.zip", SHA256)
    assert (tmp_path / "c.zip").read_bytes() == CONTENT and server.ranges == [None, "bytes=300000-"]


def test_server_without_ranges_sends_all_again(server, tmp_path):
    (tmp_path / "c.zip.part").write_bytes(b"something old")
    server.ignore_ranges = True
    download(server.url, tmp_path / "c.zip", SHA256)
    assert (tmp_path / "c.zip").read_bytes() == CONTENT


def test_complete_part_needs_no_more(server, tmp_path):
    (tmp_path / "c.zip.part").write_bytes(CONTENT)
    download(server.url, tmp_path / "c.zip", SHA256)
    assert (tmp_path / "c.zip").read_bytes() == CONTENT


def test_without_checksum_does_not_go_on_from_other_bytes(server, tmp_path):
    (tmp_path / "c.zip.part").write_bytes(b"of yesterday, when the server made it last")
    download(server.url, tmp_path / "c.zip", None)
    assert (tmp_path / "c.zip").read_bytes() == CONTENT and server.ranges == [None]


def test_wrong_content_is_not_kept(server, tmp_path):
    with pytest.raises(UserError, match="not the file expected"):
        download(server.url, tmp_path / "c.zip", "0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_wrong_file_in_place_is_replaced(server, tmp_path):
    (tmp_path / "c.zip").write_bytes(b"stale")
    download(server.url, tmp_path / "c.zip", SHA256)
    assert (tmp_path / "c.zip").read_bytes() == CONTENT


def test_no_server_is_one_line(tmp_path):
    with pytest.raises(UserError, match="cannot download http://127.0.0.1:9/x") as caught:
        download("http://127.0.0.1:9/x", tmp_path / "x", SHA256)
    assert "\n" not in str(caught.value)


def make_zip(path, names):
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, "text")


def make_tar(path, names, link_to=None):
    with tarfile.open(path, "w:gz") as file:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 4
            file.addfile(info, io.BytesIO(b"text"))
        if link_to:
            info = tarfile.TarInfo("link")
            info.type, info.linkname = tarfile.SYMTYPE, link_to
            file.addfile(info)


@pytest.mark.parametrize("make, name", [(make_zip, "a.zip"), (make_tar, "a.tar.gz")])
def test_unpacks(tmp_path, make, name):
    make(tmp_path / name, ["top/a.txt", "top/deep/b.txt"])
    extract(tmp_path / name, tmp_path / "out")
    assert (tmp_path / "out/top/deep/b.txt").read_text() == "text"


@pytest.mark.parametrize("member", ["../evil.txt", "a/../../evil.txt", "/tmp/evil-by-moe-asr.txt"])
@pytest.mark.parametrize("make, name", [(make_zip, "a.zip"), (make_tar, "a.tar.gz")])
def test_nothing_leaves_the_folder(tmp_path, make, name, member):
    make(tmp_path / name, ["good.txt", member])
    try:
        extract(tmp_path / name, tmp_path / "in" / "out")
    except UserError as error:
        assert "not safe to unpack" in str(error) and not (tmp_path / "in" / "out").exists()
    else:  # tar's filter makes absolute paths relative
        assert name == "a.tar.gz" and (tmp_path / "in/out/tmp/evil-by-moe-asr.txt").exists()
    assert not list(tmp_path.glob("evil*")) and not list((tmp_path / "in").glob("evil*"))


def test_links_out_of_the_folder_are_refused(tmp_path):
    make_tar(tmp_path / "a.tar.gz", ["good.txt"], link_to="/etc/passwd")
    with pytest.raises(UserError, match="not safe to unpack"):
        extract(tmp_path / "a.tar.gz", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("make, name", [(make_zip, "a.zip"), (make_tar, "a.tar.gz")])
def test_damaged_archive_leaves_nothing(tmp_path, make, name):
    make(tmp_path / name, [f"{i}.txt" for i in range(100)])
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="cannot unpack"):
        extract(tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """An archive as the server's content: a corpus with one part and a list beside it."""
    make_tar(tmp_path / "made", ["Corpus/LIST.TXT", "Corpus/part/1/a.txt", "Corpus/part/b.txt"])
    content = (tmp_path / "made").read_bytes()
    monkeypatch.setattr(f"{__name__}.CONTENT", content)
    return hashlib.sha256(content).hexdigest()


def test_fetch_puts_parts_beside_each_other_and_does_nothing_twice(server, archive, tmp_path):
    (tmp_path / "d/Corpus/other").mkdir(parents=True)
    for _ in range(2):
        fetch(server.url, tmp_path / "d", archive, "Corpus/part")
        (tmp_path / "d/corpus.zip").unlink(missing_ok=True)
    assert len(server.ranges) == 1
    found = sorted(path.relative_to(tmp_path / "d").as_posix() for path in (tmp_path / "d").rglob("*"))
    assert found == ["Corpus", "Corpus/LIST.TXT", "Corpus/other", "Corpus/part", "Corpus/part/1",
                     "Corpus/part/1/a.txt", "Corpus/part/b.txt"]  # fmt: skip


def test_fetch_goes_on_after_an_interruption(server, archive, tmp_path):
    server.break_after = 50
    with pytest.raises(UserError, match="50 of .* bytes; run again to go on"):
        fetch(server.url, tmp_path / "d", archive, "Corpus/part")
    assert not (tmp_path / "d/Corpus").exists()
    server.break_after = None
    fetch(server.url, tmp_path / "d", archive, "Corpus/part")
    assert server.ranges == [None, "bytes=50-"] and (tmp_path / "d/Corpus/part/b.txt").is_file()


def test_fetch_of_another_archive_is_refused(server, archive, tmp_path):
    with pytest.raises(UserError, match="holds no folder Corpus/else"):
        fetch(server.url, tmp_path / "d", archive, "Corpus/else")
    assert not (tmp_path / "d/Corpus").exists()

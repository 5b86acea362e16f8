"""Servers that cut, stall, lie and refuse: a whole file with the right name, or one line and the part that came."""

import contextlib
import dataclasses
import hashlib
import http.server
import io
import re
import shutil
import tarfile
import threading
import zipfile
from urllib.parse import urlsplit

import filelock
import pytest

from decar.corpora import CORPORA, Archive
from decar.corpora.download import download
from decar.corpora.prepare import prepare
from decar.errors import CorpusError
from decar.unpack import Bounds
from tests.faults.test_disk import no_room

TABLE = b"itemid,hasbird\n" + b"".join(b"%d,%d\n" % (i, i % 2) for i in range(40_000))
QUICK = {"timeout": 0.3, "tries": 3, "wait": 0.0}


class Server:
    """Answers each request by the next of `script` (the last one for ever): a function of handler and body."""

    def __init__(self):
        self.body, self.script, self.asked, self.files = TABLE, [whole], [], {}
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                outer.asked.append(self.headers.get("Range"))
                answer = outer.script.pop(0) if len(outer.script) > 1 else outer.script[0]
                self.close_connection = True
                with contextlib.suppress(OSError):
                    answer(self, outer.files.get(urlsplit(self.path).path, outer.body))

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.stop = threading.Event()
        self.http.stop = self.stop
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def corpus(self, *names, checksum=""):
        archives = tuple(Archive(f"{self.url}/{name}", checksum) for name in names or ("table.csv",))
        return dataclasses.replace(CORPORA["birdsong"], archives=archives)


@pytest.fixture
def server():
    made = Server()
    yield made
    made.stop.set()
    made.http.shutdown()
    made.http.server_close()


def send(handler, status, body, **headers):
    handler.send_response(status)
    for name, value in headers.items():
        if value is not None:
            handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def whole(handler, body, **headers):
    """As good servers do, with ranges."""
    tag = {"ETag": f'"{hashlib.md5(body).hexdigest()}"'} | headers
    wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
    if wanted and handler.headers.get("If-Range") == tag["ETag"]:
        start = int(wanted[1])
        rest = {"Content_Length": len(body) - start, "Content_Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
        send(handler, 206, body[start:], **tag, **rest)
    else:
        send(handler, 200, body, **tag, Content_Length=len(body))


class cut:
    """Stops after `n` more bytes, whatever was promised; `stalls` leaves the connection open."""

    def __init__(self, n, *, stalls=False, **headers):
        self.n, self.stalls, self.headers = n, stalls, headers

    def __call__(self, handler, body):
        handler.wfile, real = Cutting(handler.wfile, self.n), handler.wfile
        whole(handler, body, **self.headers)
        handler.wfile = real
        if self.stalls:
            handler.server.stop.wait(5)


class Cutting:
    def __init__(self, file, n):
        self.file, self.n = file, n

    def write(self, data):
        self.file.write(data if data.startswith(b"HTTP/") else data[: self.n])


def status(code, body=b"", **headers):
    return lambda handler, _: send(handler, code, body, Content_Length=len(body), **headers)


def chunked(handler, body, *, end=b"0\r\n\r\n"):
    send(handler, 200, b"%x\r\n%s\r\n" % (len(body), body) + end, Transfer_Encoding="chunked")


def fails(server, root, says, **options):
    with pytest.raises(CorpusError, match=says) as caught:
        download(server.corpus(**options), root, **QUICK)
    assert "\n" not in str(caught.value)
    assert not (root / "archives" / "table.csv").exists()
    assert not (root / "table.csv").exists()


@pytest.mark.parametrize("how", [{}, {"stalls": True}])
def test_a_cut_or_stalled_connection_goes_on_where_it_stopped(server, tmp_path, how):
    server.script = [cut(100_000, **how), cut(50_000, **how), whole]
    download(server.corpus(), tmp_path, **QUICK)
    assert (tmp_path / "table.csv").read_bytes() == TABLE
    assert server.asked == [None, "bytes=99999-", "bytes=149998-"]
    assert {file.name for file in (tmp_path / "archives").glob("*table*")} == {"table.csv", ".table.csv.unpacked"}


@pytest.mark.parametrize("how", [{}, {"stalls": True}])
def test_half_a_file_is_no_file_and_is_kept_to_go_on_with(server, tmp_path, how):
    server.script = [cut(100_000, **how), cut(1, **how)]
    fails(
        server, tmp_path, r"table\.csv cannot be downloaded: .*(100,000 of 308,905 bytes|timed out); run again to go on"
    )
    assert len(server.asked) == 4  # the first brought something, three more in a row nothing
    assert (tmp_path / "archives" / ".table.csv.part").stat().st_size == 100_000
    with pytest.raises(CorpusError, match=r"table\.csv is only partly downloaded; run again with --download"):
        prepare(CORPORA["birdsong"], tmp_path, tmp_path / "cache")
    server.script, server.asked = [whole], []
    download(server.corpus(), tmp_path, **QUICK)
    assert server.asked == ["bytes=99999-"]
    assert (tmp_path / "table.csv").read_bytes() == TABLE


def test_a_whole_part_is_taken_without_fetching_it_again(server, tmp_path):
    """Killed between the last byte and the renaming."""
    server.script = [cut(100_000), cut(0)]
    fails(server, tmp_path, "cannot be downloaded")
    (tmp_path / "archives" / ".table.csv.part").write_bytes(TABLE)
    server.script, server.asked = [whole], []
    download(server.corpus(), tmp_path, **QUICK)
    assert server.asked == [f"bytes={len(TABLE) - 1}-"]
    assert (tmp_path / "table.csv").read_bytes() == TABLE


def test_another_version_is_not_glued_to_the_part_of_the_first(server, tmp_path):
    other = TABLE.replace(b",1\n", b",0\n") + b"1,1\n"

    def unconditional(handler, body):  # ignores If-Range
        body, start = other, int((handler.headers.get("Range") or "bytes=0-")[6:-1])
        rest = {"Content_Length": len(body) - start, "Content_Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
        send(handler, 206 if start else 200, body[start:], ETag='"other"', **rest)

    for answer in (lambda handler, _: whole(handler, other), unconditional):
        root = tmp_path / str(id(answer))
        server.script = [cut(100_000), answer]
        download(server.corpus(), root, **QUICK)
        assert (root / "table.csv").read_bytes() == other


@pytest.mark.parametrize("tag", [None, 'W/"1"'])
def test_without_an_exact_version_a_part_is_fetched_again(server, tmp_path, tag):
    server.script = [cut(100_000, ETag=tag), lambda handler, body: whole(handler, body, ETag=tag)]
    download(server.corpus(), tmp_path, **QUICK)
    assert server.asked == [None, None]
    assert (tmp_path / "table.csv").read_bytes() == TABLE


@pytest.mark.parametrize("code", [500, 503, 429])
def test_a_server_that_is_busy_is_asked_again(server, tmp_path, code, caplog):
    server.script = [status(code), status(code), whole]
    download(server.corpus(), tmp_path, **QUICK)
    assert (tmp_path / "table.csv").read_bytes() == TABLE
    assert f"the server answers with status {code}; next try in 0 s" in caplog.text


def test_pauses_double(server, tmp_path, monkeypatch):
    slept = []
    monkeypatch.setattr("time.sleep", slept.append)
    server.script = [status(503)]
    with pytest.raises(CorpusError, match="status 503; run again to go on"):
        download(server.corpus(), tmp_path)
    assert slept == [1, 2, 4, 8, 16, 32]


@pytest.mark.parametrize("code", [403, 404, 410])
def test_a_file_that_is_not_there_is_told_at_once(server, tmp_path, code):
    server.script = [status(code, b"<html>gone</html>")]
    fails(server, tmp_path, rf"status {code}; .* save it by hand as {tmp_path}/archives/table\.csv, see https://dcase")
    assert len(server.asked) == 1


def test_a_part_longer_than_the_file_is_fetched_again(server, tmp_path):
    server.script = [cut(100_000), status(416), whole]
    download(server.corpus(), tmp_path, **QUICK)
    assert server.asked == [None, "bytes=99999-", None]
    assert (tmp_path / "table.csv").read_bytes() == TABLE


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><html>sign in</html>", b"\n<HTML>busy</HTML>"])
def test_a_web_page_is_no_archive(server, tmp_path, page):
    server.script = [status(200, page)]
    fails(server, tmp_path, "a web page came instead of the file")
    assert not list((tmp_path / "archives").glob(".*.part"))


def test_a_length_is_stated_or_the_end_is_marked(server, tmp_path):
    server.script = [chunked]
    download(server.corpus(), tmp_path / "chunked", **QUICK)
    assert (tmp_path / "chunked" / "table.csv").read_bytes() == TABLE
    server.script = [lambda handler, body: chunked(handler, body, end=b"")]
    fails(server, tmp_path, r"table\.csv cannot be downloaded: IncompleteRead")
    server.script = [lambda handler, body: send(handler, 200, body[:100_000])]
    fails(server, tmp_path, "does not say how long the file is")
    server.script = [lambda handler, _: handler.wfile.write(b"what?\r\n\r\n")]
    fails(server, tmp_path, "cannot be downloaded: ")


def test_nobody_listens(tmp_path):
    corpus = dataclasses.replace(CORPORA["birdsong"], archives=(Archive("http://127.0.0.1:9/table.csv"),))
    with pytest.raises(CorpusError, match=r"cannot be downloaded: .*refused"):
        download(corpus, tmp_path, **QUICK)


def test_a_published_checksum_decides_also_about_what_was_put_there_by_hand(server, tmp_path):
    right, wrong = f"md5:{hashlib.md5(TABLE).hexdigest()}", "sha256:0"
    fails(server, tmp_path, "published is 0; run again", checksum=wrong)
    assert not list((tmp_path / "archives").glob("*table*"))
    (tmp_path / "archives" / "table.csv").write_bytes(TABLE[:100_000])
    with pytest.raises(CorpusError, match=r"published is .*; delete .*table\.csv and run again"):
        download(server.corpus(checksum=right), tmp_path, **QUICK)
    (tmp_path / "archives" / "table.csv").write_bytes(TABLE)
    server.asked.clear()
    download(server.corpus(checksum=right), tmp_path, **QUICK)
    assert server.asked == []
    assert (tmp_path / "table.csv").read_bytes() == TABLE


def test_a_full_disk_is_told_and_the_part_is_kept(server, tmp_path):
    with no_room(100_000), pytest.raises(CorpusError, match=r"part: cannot be written \(File too large\).* goes on"):
        download(server.corpus(), tmp_path, **QUICK)
    assert len(server.asked) == 1
    assert (tmp_path / "archives" / ".table.csv.part").stat().st_size == 100_000
    download(server.corpus(), tmp_path, **QUICK)
    assert server.asked[1] == "bytes=99999-"
    assert (tmp_path / "table.csv").read_bytes() == TABLE
    (tmp_path / "file").write_text("")
    with pytest.raises(CorpusError, match=r"file.*: cannot be written"):
        download(server.corpus(), tmp_path / "file", **QUICK)


def test_two_downloads_to_one_folder(server, tmp_path):
    (tmp_path / "archives").mkdir()
    with (
        filelock.FileLock(tmp_path / "archives" / ".lock"),
        pytest.raises(CorpusError, match="another process downloads to this folder"),
    ):
        download(server.corpus(), tmp_path, **QUICK)
    download(server.corpus(), tmp_path, **QUICK)


def zipped(**members):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return data.getvalue()


def test_one_damaged_archive_is_set_aside_and_hinders_no_other(server, tmp_path):
    good, bad = zipped(good=b"1"), bytearray(zipped(bad=b"12345"))
    bad[bad.index(b"12345")] ^= 1
    server.files = {"/bad.zip": bytes(bad), "/good.zip": good}
    corpus = server.corpus("bad.zip", "good.zip")
    with pytest.raises(CorpusError, match=r"bad\.zip: damaged .*CRC.*; renamed to end in \.damaged: run again"):
        download(corpus, tmp_path, **QUICK)
    assert {file.name for file in tmp_path.iterdir()} == {"archives", "good"}
    with pytest.raises(CorpusError, match=r"bad\.zip is only partly unpacked"):
        prepare(CORPORA["birdsong"], tmp_path, tmp_path / "cache")
    server.files["/bad.zip"], server.asked = zipped(bad=b"12345"), []
    download(corpus, tmp_path, **QUICK)
    assert len(server.asked) == 1
    assert (tmp_path / "bad").read_bytes() == b"12345"
    shutil.rmtree(tmp_path / "archives" / "good.zip", ignore_errors=True)
    download(corpus, tmp_path, **QUICK)  # what is unpacked is not fetched again
    assert len(server.asked) == 1


def test_a_limit_of_the_caller(server, tmp_path):
    server.files = {"/big.zip": zipped(big=b"1" * 1000)}
    with pytest.raises(CorpusError, match=r"big\.zip: refused, it unpacks to more than 999 bytes"):
        download(server.corpus("big.zip"), tmp_path, bounds=Bounds(size=999), **QUICK)
    assert not (tmp_path / "big").exists()
    download(server.corpus("big.zip"), tmp_path, bounds=Bounds(size=1000), **QUICK)
    assert (tmp_path / "big").stat().st_size == 1000


def test_a_zip_in_pieces_says_how_to_join_them(server, tmp_path):
    server.files = {"/a.z01": b"PK\7\10", "/a.zip": zipped(a=b"")[20:]}
    with pytest.raises(CorpusError, match=r"a\.zip: in several pieces.*zip -s 0 .*archives/a\.zip --out whole\.zip"):
        download(server.corpus("a.z01", "a.zip"), tmp_path, **QUICK)


# what lies in which archive of the official downloads: name of the archive, what in the replica goes there, below what
CONTENTS = {
    "librispeech": [("train-clean-100.tar.gz", "LibriSpeech/", "")],
    "tut_urban_2018": [
        ("TUT-urban-acoustic-scenes-2018-development.meta.zip", r"TUT.*/(meta|evaluation_setup)", ""),
        ("TUT-urban-acoustic-scenes-2018-development.audio.1.zip", "TUT.*/audio/(airport|bus)", ""),
        ("TUT-urban-acoustic-scenes-2018-development.audio.13.zip", "TUT.*/audio/tram", ""),
    ],
    "speech_commands_v1": [("speech_commands_v0.01.tar.gz", "", "")],
    "speech_commands_v2": [("speech_commands_v0.02.tar.gz", "", "SpeechCommands/speech_commands_v0.02/")],
    "birdsong": [
        ("ff1010bird_wav.zip", "ff1010bird_wav/", "ff1010bird_wav/"),
        ("warblrb10k_public_wav.zip", "warblrb10k_public_wav/", "warblrb10k_public_wav/"),
        ("10853303", "ff1010bird_metadata_2018.csv", None),
        ("10853306", "warblrb10k_public_metadata_2018.csv", None),
    ],
    "nsynth": [(f"nsynth-{part}.jsonwav.tar.gz", f"nsynth-{part}/", "") for part in ("train", "valid", "test")],
    "esc50": [("master.zip", "ESC-50-master/", "")],
    "urbansound8k": [("UrbanSound8K.tar.gz", "UrbanSound8K/", "")],
    "fsd50k": [
        ("FSD50K.ground_truth.zip", "FSD50K.ground_truth/", ""), ("FSD50K.dev_audio.zip", "FSD50K.dev_audio/", ""),
        ("FSD50K.eval_audio.zip", "FSD50K.eval_audio/", ""),
    ],
}  # fmt: skip


def packed(root, name, pattern, below):
    """The replica's files as one archive of the official download."""
    files = [file for file in sorted(root.rglob("*")) if file.is_file()]
    chosen = [file for file in files if re.match(pattern, str(file.relative_to(root)))]
    assert chosen, name
    if below is None:
        return chosen[0].read_bytes()
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") if name.endswith(".zip") else tarfile.open(fileobj=data, mode="w:gz") as archive:
        for file in chosen:
            (archive.write if name.endswith(".zip") else archive.add)(file, str(file.relative_to(root / below)))
    return data.getvalue()


@pytest.mark.parametrize("name", sorted(name for name, corpus in CORPORA.items() if corpus.archives))
def test_what_is_downloaded_is_what_the_reader_looks_for(name, server, replica, tmp_path):
    corpus, source = CORPORA[name], replica(name)
    paths = {archive.url.rsplit("/", 1)[1]: urlsplit(archive.url).path for archive in corpus.archives}
    server.body = zipped(LICENSE=b"")  # of the archives that hold no clips
    for archive, pattern, below in CONTENTS[name]:
        server.files[paths[archive]] = packed(source, archive, pattern, below)
    served = tuple(
        dataclasses.replace(archive, url=server.url + urlsplit(archive.url).path, checksum="")
        for archive in corpus.archives
        if not re.search(r"\.z\d\d$", archive.url)  # pieces are joined by hand
    )
    download(dataclasses.replace(corpus, archives=served), tmp_path / "root", **QUICK)
    made = prepare(corpus, tmp_path / "root", tmp_path / "cache", store=False)
    assert made.missing == 0
    expected = corpus.read(source).table
    assert sorted(made.manifest.table[corpus.label]) == sorted(expected[corpus.label])
    for column in {"split", "fold"} & set(expected):
        assert sorted(made.manifest.table[column]) == sorted(expected[column])

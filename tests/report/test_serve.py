"""`decar page --serve`: what it answers, to whom, and what it writes."""

import contextlib
import csv
import http.client
import io
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import soundfile

from decar.audio import Manifest
from decar.downstream.classifier import read_examples
from decar.errors import DecarError
from decar.files import whole
from decar.report.page import render
from decar.report.run import BEGIN, END
from decar.report.serve import LONGEST, MOST_BYTES, Labels, PageServer, Refused, clips_of, data_of
from tests.report.helpers import field_page

HEAD = "path,start,duration,label,by\n"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return field_page(tmp_path_factory.mktemp("field"))


@contextmanager
def serving(page, **options):
    with PageServer(page, **options) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server, path, *, method="GET", body=None, host=None, token=None, **headers):
    """Status, headers and content; the token is the server's unless another one is given."""
    wire = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    wire.request(
        method, path, body, {"Host": host or f"127.0.0.1:{server.server_port}",
                             "X-Token": server.token if token is None else token, **headers}
    )  # fmt: skip
    answer = wire.getresponse()
    content = answer.read()
    wire.close()
    return answer.status, dict(answer.getheaders()), content


def served(server):
    """What the page has from the server beside its own data."""
    content = ask(server, "/")[2]
    begin = content.index(BEGIN) + len(BEGIN)
    return json.loads(content[begin : content.index(END, begin)])["served"]


def test_the_page_is_made_anew_from_its_data_with_the_labels_that_are_there(page, tmp_path):
    with serving(page) as server:
        status, headers, content = ask(server, "/")
        assert status == 200
        assert "connect-src 'self'" in headers["Content-Security-Policy"]
        assert headers["Cache-Control"] == "no-store"
        (tmp_path / "again.html").write_bytes(content)
        again = data_of(tmp_path / "again.html")
    assert again.pop("served") == {"token": server.token, "version": "", "labels": "", "file": "labels.csv"}
    first = data_of(page)
    assert first.pop("served") is None
    assert again == first


def test_a_hostile_page_gives_its_data_and_none_of_its_scripts(page, tmp_path):
    hostile = tmp_path / "page.html"
    hostile.write_bytes(page.read_bytes().replace(b"<script>", b"<script>fetch('http://evil/');</script><script>"))
    with serving(hostile) as server:
        content = ask(server, "/")[2]
    assert b"http://evil/" not in content
    assert b"http://evil/" in hostile.read_bytes()


@pytest.mark.parametrize(
    "how",
    [
        {"token": ""}, {"token": "wrong"}, {"token": "ü"}, {"host": "evil.example"}, {"host": "127.0.0.1"},
        {"host": "127.0.0.1:1"}, {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "https://localhost"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/", "/sound/0", "/picture/0", "/labels"])
def test_nobody_else_is_answered(page, how, path):
    if how.get("token") == "ü":
        how = {**how, "token": "ü".encode().decode("latin-1")}
    with serving(page) as server:
        status, _, content = ask(server, path, method="PUT" if path == "/labels" else "GET", body=HEAD, **how)
        assert (status, content) == (403, b"take the address that decar page printed")
        assert not server.labels.file.exists()
        assert server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize(
    "path", ["/sound/16", "/picture/16", "/sound/-1", "/sound/99999999999999999999", "/sound/../report.html",
             "/report.html", "/labels.csv", "/etc/passwd", "/sound/%2e%2e/x", "/picture/1e0", "/sound/0/0"]
)  # fmt: skip
def test_only_clips_of_the_page_can_be_read(page, path):
    with serving(page) as server:
        assert ask(server, path)[0] == 404


def test_a_clip_plays_in_full_and_from_the_middle(page):
    """Segment 2 of 4 of a recording whose tone rises every 5 s: 1,500 Hz for all of its 5 s."""
    with serving(page) as server:
        index = data_of(page)["clips"]["name"].index("a.wav · 0:10")
        status, headers, content = ask(server, f"/sound/{index}?token={server.token}", token="")
        assert (status, headers["Content-Type"]) == (200, "audio/wav")
        wave, rate = soundfile.read(io.BytesIO(content))
        assert len(wave) / rate == pytest.approx(5.0, abs=0.001)
        spectrum = np.abs(np.fft.rfft(wave))
        assert np.fft.rfftfreq(len(wave), 1 / rate)[spectrum.argmax()] == pytest.approx(1500, abs=1)
        assert np.abs(wave).max() == pytest.approx(0.9, abs=0.01)
        status, headers, rest = ask(server, f"/sound/{index}", Range="bytes=1000-")
        assert (status, rest) == (206, content[1000:])
        assert headers["Content-Range"] == f"bytes 1000-{len(content) - 1}/{len(content)}"
        status, headers, picture = ask(server, f"/picture/{index}")
        assert (status, picture[:4], picture[8:12]) == (200, b"RIFF", b"WEBP")


def test_every_segment_of_a_time_line_plays_also_those_that_are_no_clips_of_the_page(page, tmp_path):
    data = data_of(page)
    for key, values in data["clips"].items():
        if key in ("at", "for"):
            data["clips"][key] = values[:2]
    data["clips"]["path"]["codes"] = data["clips"]["path"]["codes"][:2]
    (tmp_path / "page.html").write_text(render(data), encoding="utf-8")
    with serving(tmp_path / "page.html") as server:
        assert [line["path"] for line in data["when"]["lines"]["recordings"]] == ["<b>.wav", "a.wav"]
        wave, rate = soundfile.read(io.BytesIO(ask(server, f"/sound/{2 + 4 + 2}")[2]))
        assert len(wave) / rate == pytest.approx(5.0, abs=0.001)
        assert np.fft.rfftfreq(len(wave), 1 / rate)[np.abs(np.fft.rfft(wave)).argmax()] == pytest.approx(1500, abs=1)
        assert ask(server, "/picture/9")[0] == 200
        assert ask(server, "/sound/10")[0] == 404


def test_a_sound_that_went_away_says_so_and_one_that_moved_is_found(tmp_path):
    page = field_page(tmp_path / "here")
    (tmp_path / "here" / "a.wav").rename(tmp_path / "a.wav")
    with serving(page) as server:
        index = data_of(page)["clips"]["name"].index("a.wav · 0:10")
        assert ask(server, f"/sound/{index}")[::2] == (404, b"file not found")
        assert ask(server, f"/picture/{index}")[0] == 404
    with serving(page, root=tmp_path) as server:
        assert ask(server, f"/sound/{index}")[0] == 200
        assert json.dumps(str(tmp_path)).encode() in ask(server, "/")[2], "labels name where the sound lies now"


def test_labels_that_name_the_old_place_of_sounds_that_moved_are_labels_of_these_clips(tmp_path):
    page = field_page(tmp_path / "here")
    old, new = tmp_path / "here", tmp_path / "there"
    rows = f'"{old}/a.wav",5,5,low,clip\n{old}er/a.wav,5,5,other,clip\n"{old}/<b>.wav",0,5,"high,low",clip\n'
    (old / "labels.csv").write_text(HEAD + rows)
    with serving(page) as server:
        assert server.strangers() == (1, f"{old}er/a.wav")
        assert served(server)["labels"] == HEAD + rows, "nothing has moved: as the file has it"
    old.rename(new)
    with serving(new / "report.html", root=new) as server:
        found = served(server)
        assert [row["path"] for row in csv.DictReader(io.StringIO(found["labels"]))] == [
            f"{new}/a.wav", f"{old}er/a.wav", f"{new}/<b>.wav",
        ]  # fmt: skip
        assert [row["label"] for row in csv.DictReader(io.StringIO(found["labels"]))] == ["low", "other", "high,low"]
        assert found["version"] == server.labels.read()[1], "what the file has is still what a write must know"
        assert (new / "labels.csv").read_text() == HEAD + rows, "reading changes nothing"
        assert server.strangers() == (1, f"{old}er/a.wav")
    with serving(new / "report.html") as server:
        assert server.strangers() == (1, f"{old}er/a.wav"), "the page of the old place knows the labels of that place"


def test_a_root_for_a_page_of_absolute_paths_is_refused(tmp_path):
    page = field_page(tmp_path)
    data = data_of(page)
    data["clips"]["path"]["values"] = [str(tmp_path / path) for path in data["clips"]["path"]["values"]]
    for line in data["when"]["lines"]["recordings"]:
        line["path"] = str(tmp_path / line["path"])
    page.write_text(render(data), encoding="utf-8")
    with pytest.raises(DecarError, match=r"--root .*other: all sounds of the page have absolute paths"):
        PageServer(page, root=tmp_path / "other")


def test_a_long_clip_is_cut_where_it_would_not_fit(tmp_path, monkeypatch):
    monkeypatch.setattr("decar.report.serve.LONGEST", 2.0)
    with serving(field_page(tmp_path)) as server:
        assert len(soundfile.read(io.BytesIO(ask(server, "/sound/0")[2]))[0]) == 2 * 32_000
    assert LONGEST == 300


def test_labels_are_replaced_only_by_somebody_who_has_read_them(tmp_path):
    page = field_page(tmp_path)
    with serving(page) as server:
        put = {"method": "PUT"}
        status, _, version = ask(server, "/labels", body=HEAD + "a.wav,0,5,dog,clip\n", **put)
        assert status == 200
        assert (tmp_path / "labels.csv").read_text() == HEAD + "a.wav,0,5,dog,clip\n"
        status, _, text = ask(server, "/labels", body=HEAD, **put)
        assert (status, "has changed since" in text.decode()) == (409, True)
        status, _, again = ask(server, "/labels", body=HEAD + "a.wav,0,5,cat,clip\n", If_Match=version.decode(), **put)
        assert status == 200
        assert ask(server, "/labels", body="", If_Match=again.decode(), **put)[0] == 200, "the last label was removed"
        (tmp_path / "labels.csv").write_text("something,else\n")
        status, _, text = ask(server, "/labels", body=HEAD, **put)
        assert (status, "no column path or label" in text.decode()) == (409, True)
    assert (tmp_path / "labels.csv").read_text() == "something,else\n"
    with pytest.raises(DecarError, match=r"labels\.csv: no column path or label: not a table of labels; move it"):
        PageServer(page)
    (tmp_path / "labels.csv").write_text("\nsomething,else\n")
    with pytest.raises(DecarError, match=r"not a table of labels"):
        PageServer(page)


def test_two_servers_of_one_folder_do_not_write_over_each_other(tmp_path, monkeypatch):
    (tmp_path / "labels.csv").write_text(HEAD)
    one, other = Labels(tmp_path / "labels.csv"), Labels(tmp_path / "labels.csv")
    version, both = one.read()[1], threading.Barrier(2)

    def slow(path):
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.5)  # both have compared the version before one of them writes, if nothing keeps them apart
        return whole(path)

    def write(labels, word):
        try:
            return labels.write(f"{HEAD}a.wav,0,5,{word},clip\n", version)
        except Refused as refused:
            return str(refused)

    monkeypatch.setattr("decar.report.serve.whole", slow)
    with ThreadPoolExecutor(2) as pool:
        said = [*pool.map(write, (one, other), ("dog", "cat"))]
    assert sum("has changed since" in text for text in said) == 1, said


def test_labels_that_came_in_part_are_not_written(tmp_path):
    """The browser is closed, or the connection breaks, while a page sends its labels."""
    (tmp_path / "labels.csv").write_text(HEAD + "a.wav,0,5,dog,clip\na.wav,5,5,cat,clip\n")
    with serving(field_page(tmp_path)) as server:
        version = server.labels.read()[1]
        body = (HEAD + "a.wav,0,5,dog,clip\na.wav,5,5,cat,clip\nb.wav,0,5,cat,clip\n").encode()
        head = (
            f"PUT /labels HTTP/1.1\r\nHost: 127.0.0.1:{server.server_port}\r\nX-Token: {server.token}\r\n"
            f"If-Match: {version}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", server.server_port)) as wire:
            wire.sendall(head.encode() + body[:40])
            wire.shutdown(socket.SHUT_WR)
            assert b"400" in wire.recv(4096)
    assert len((tmp_path / "labels.csv").read_text().splitlines()) == 3


def test_a_disk_that_is_full_is_an_answer_and_the_old_labels_stay(tmp_path, monkeypatch):
    page = field_page(tmp_path)

    def full(path):
        raise OSError(28, "No space left on device", str(path))

    with serving(page) as server:
        version = ask(server, "/labels", method="PUT", body=HEAD)[2].decode()
        monkeypatch.setattr("decar.report.serve.whole", full)
        status, _, text = ask(server, "/labels", method="PUT", body=HEAD + "a.wav,,,x,clip\n", If_Match=version)
    assert (status, "the disk is full, make room" in text.decode()) == (507, True)
    assert (tmp_path / "labels.csv").read_text() == HEAD


@pytest.mark.parametrize(
    ("body", "status"), [("a,b\n1,2\n", 409), (b"\xff\xfe", 400), ("", 200)], ids=["other table", "no text", "nothing"]
)
def test_what_is_no_table_of_labels_is_not_written(tmp_path, body, status):
    with serving(field_page(tmp_path)) as server:
        assert ask(server, "/labels", method="PUT", body=body)[0] == status
        assert ask(server, "/", method="PUT", body=HEAD)[0] == 404
        assert ask(server, "/labels", method="PUT", Content_Length=str(MOST_BYTES + 1))[0] == 413
        assert ask(server, "/", method="POST", body=HEAD)[0] == 501
    assert not (tmp_path / "labels.csv").exists() or (tmp_path / "labels.csv").read_text() == ""


@pytest.mark.parametrize(
    ("part", "damaged"),
    [
        ("", None), (b'{"title"', b'["title"'), (b'"title":"', b'"title":1,"x":"'), (b'"root"', b'"tree"'),
        (b'"f_max":', b'"f_max":"x","f":'), (b'"codes":[', b'"codes":[99,'), (b'"at":[0', b'"at":["x"'),
        (b'"at":[', b'"at":[0,'), (b'"explorer":', b'"explor</script>:'), (b'"starts":[[0,1]', b'"starts":[[0,1e15]'),
        (b'"starts":[[0,1]', b'"starts":[["x",1]'), (b'"starts":[[0,1]', b'"starts":[[0,-1]'),
        (b'"lengths":', b'"len":'), (b'"lengths":[[5000,4]', b'"lengths":[[5000,3]'), (b'"bars":', b'"bar":'),
    ],
)  # fmt: skip
def test_a_damaged_page_is_refused_by_name(page, tmp_path, part, damaged):
    other = tmp_path / "page.html"
    content = page.read_bytes().replace(part, damaged, 1) if part else b"<html>"
    assert content != page.read_bytes()
    other.write_bytes(content)
    with pytest.raises(DecarError):
        PageServer(other)
    with pytest.raises(DecarError, match="cannot be read"):
        data_of(tmp_path / "none.html")


def test_a_page_without_clips_is_served_too(tmp_path, page):
    data = {**data_of(page), "clips": None, "explorer": []}
    (tmp_path / "page.html").write_text(render(data), encoding="utf-8")
    with serving(tmp_path / "page.html") as server:
        assert ask(server, "/")[0] == 200
        assert ask(server, "/sound/0")[0] == 404
    assert len(clips_of(data)) == 0


def test_labels_of_the_page_are_what_fit_reads(page):
    """The columns that the page writes, with the stretches as it has them."""
    data = data_of(page)
    clips = clips_of(data)
    table = clips.table.assign(path=[str(file) for file in clips.files], label=["low", "-low", "high", "high"] * 2)
    examples = read_examples(Manifest(table, "/"))
    assert examples.names == ["high", "low"]
    assert examples.known.sum(axis=1).tolist() == [2, 1, 2, 2] * 2


def test_a_port_that_is_taken_is_named(page):
    with serving(page) as server, pytest.raises(DecarError, match=f"--port {server.server_port}: .*take another one"):
        PageServer(page, server.server_port)


def test_a_page_of_suggestions_offers_the_labels_that_are_known(tmp_path):
    data = data_of(field_page(tmp_path, words=["dog", "cat"], suggested=True))
    assert (data["words"], data["suggested"]) == (["dog", "cat"], True)
    assert [found["name"] for found in data["explorer"]] == ["suggested clips"]

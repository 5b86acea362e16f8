"""Addresses in place of paths: fetched only if the caller asks for it, once, and whole."""

import fsspec
import numpy as np
import pandas as pd
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import decar
from decar.audio import Manifest, remote
from decar.audio.cache import cached, delete
from decar.audio.source import read_source
from decar.errors import CorpusError, ManifestError
from tests.audio.sounds import tone, write
from tests.corpora.test_download import cut, server, status, whole
from tests.faults.test_disk import no_room

__all__ = ["server"]


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("DECAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "TRIES", 1)
    return tmp_path / "cache" / "sources" / "fetched"


@pytest.fixture
def sounds(tmp_path, server):
    """Two sounds on a server; their folder."""
    for i, name in enumerate(["site/20240512_053000.wav", "b.flac"]):
        file = write(tmp_path / "sounds" / name, tone(0.3, hz=300.0 + 200 * i))
        server.files[f"/{name}"] = file.read_bytes()
    return tmp_path / "sounds"


def table(tmp_path, *paths):
    pd.DataFrame({"path": paths, "call": [str(i) for i in range(len(paths))]}).to_csv(tmp_path / "t.csv", index=False)
    return tmp_path / "t.csv"


def test_the_sounds_are_those_of_the_server(tmp_path, server, sounds):
    addresses = [f"{server.url}/site/20240512_053000.wav", f"{server.url}/b.flac"]
    file = table(tmp_path, *addresses, "sounds/b.flac")
    clips = read_source(file, fetch=True)
    host = server.url.removeprefix("http://")
    assert clips.table.to_dict("list") == {
        "path": [f"http/{host}/site/20240512_053000.wav", f"http/{host}/b.flac", str(tmp_path / "sounds" / "b.flac")],
        "call": ["0", "1", "2"],
        "url": [*addresses, ""],
    }
    plain = decar.embed([sounds / "site/20240512_053000.wav", *[sounds / "b.flac"] * 2], progress=False)
    assert np.array_equal(decar.embed(file, fetch=True, progress=False).vectors, plain.vectors)
    assert len(server.asked) == 2  # each once, also by the second call


@pytest.mark.parametrize(
    "names", [["https://example.org/a.wav"], ["a.wav", "S3://bucket/a.wav"], ["file:///etc/passwd"]]
)
def test_nothing_is_fetched_unasked(tmp_path, monkeypatch, names):
    monkeypatch.setattr(remote, "fetch", None)
    file = table(tmp_path, *names)
    doors = (
        lambda: decar.embed(file, progress=False),
        lambda: decar.embed(names, progress=False),
        lambda: Manifest.from_csv(file).identity(),
        lambda: Manifest.from_path(file).jobs,
    )
    for door in doors:
        with pytest.raises(ManifestError, match=rf"{names[-1]} is an address, and nothing is fetched .* pass --fetch"):
            door()


def test_the_cache_is_not_cleared_while_sounds_are_fetched(server, sounds, cache, monkeypatch):
    kept, get = [], remote._get

    def get_and_clear(address, file):
        with pytest.raises(BlockingIOError):
            delete(cache)
        kept.append(cached(cache.parents[1])["sources"])
        return get(address, file)

    monkeypatch.setattr(remote, "_get", get_and_clear)
    [file] = read_source(f"{server.url}/b.flac", fetch=True).files
    assert kept == [[cache]]
    delete(cache)
    assert not file.exists()


def test_one_address_is_a_source(server, sounds):
    [file] = read_source(f"{server.url}/b.flac", fetch=True).files
    assert file.read_bytes() == (sounds / "b.flac").read_bytes()


def test_what_cannot_be_fetched_is_named_and_tried_again(tmp_path, server, sounds, caplog):
    server.script = [status(404), whole]
    file = table(tmp_path, f"{server.url}/gone.wav")
    with pytest.raises(ManifestError, match=r"nothing could be fetched; http.*/gone\.wav: .* status 404"):
        read_source(file, fetch=True)
    server.script, server.files["/gone.wav"] = [status(404), whole], b"<html>"
    file = table(tmp_path, f"{server.url}/gone.wav", f"{server.url}/b.flac")
    remote.THREADS, threads = 1, remote.THREADS
    try:
        clips = read_source(file, fetch=True)
    finally:
        remote.THREADS = threads
    assert [path.is_file() for path in clips.files] == [False, True]
    assert f"{server.url}/gone.wav (the server answers with status 404)" in caplog.text
    server.files["/gone.wav"] = b"there"
    assert [path.is_file() for path in read_source(file, fetch=True).files] == [True, True]


def test_half_a_sound_is_no_sound_and_is_continued(server, sounds, cache):
    server.script = [cut(1000), cut(0), whole]
    address = f"{server.url}/b.flac"
    with pytest.raises(ManifestError, match="connection ended after"):
        read_source(address, fetch=True)
    assert [file.name for file in cache.rglob("*.flac")] == []
    [file] = read_source(address, fetch=True).files
    assert file.read_bytes() == (sounds / "b.flac").read_bytes()
    assert server.asked[-1] == "bytes=999-"
    assert [entry.name for entry in file.parent.iterdir()] == ["b.flac"]


def test_a_full_disk_ends_the_fetching(server, sounds, cache):
    server.body = bytes(200_000)
    with no_room(50_000), pytest.raises(CorpusError, match=r"\.x\.wav\.part: cannot be written"):
        read_source(f"{server.url}/x.wav", fetch=True)
    assert not list(cache.rglob("x.wav"))


def test_a_sound_without_end_is_refused(server, sounds, monkeypatch):
    monkeypatch.setattr(remote, "MOST_BYTES", 1000)
    with pytest.raises(ManifestError, match="it has more than 1,000 bytes"):
        read_source(f"{server.url}/b.flac", fetch=True)


def test_what_no_server_would_see_is_refused(tmp_path, server, sounds):
    file = table(tmp_path, f"{server.url}/b.flac", f"{server.url}/b.flac#t=1,2")
    with pytest.raises(ManifestError, match=r"b\.flac#t=1,2: what is behind # is not sent .* write %23 .* start"):
        read_source(file, fetch=True)
    assert not server.asked


@pytest.mark.parametrize("address", ["file:///etc/passwd", "zip://a.wav::https://example.org/a.zip", "data://x"])
def test_other_kinds_of_addresses_are_refused(address):
    with pytest.raises(ManifestError, match=r"unknown kind of address; known are http:// https:// s3://"):
        read_source(address, fetch=True)


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("https://example.org/x/a.wav", r"https/example\.org/x/a\.wav"),
        ("https://example.org/../../a.wav", r"https/a~[0-9a-f]{16}\.wav"),
        ("https://example.org/.hidden/a.wav", r"https/a~[0-9a-f]{16}\.wav"),
        ("https://example.org/a.wav?token=1", r"https/a~[0-9a-f]{16}\.wav"),
        ("https://example.org/" + "a" * 300 + ".wav", r"https/a{96}~[0-9a-f]{16}\.wav"),
        ("https://example.org/", r"https/~[0-9a-f]{16}"),
        ("https://example.org/\\..\\a\n.wav", r"https/_\.\._a~[0-9a-f]{16}\.wav"),
    ],
)
def test_no_address_leads_out_of_the_cache(address, place):
    assert pd.Series([remote.place_of(address)]).str.fullmatch(place).all(), remote.place_of(address)


class Bucket(MemoryFileSystem):
    """Stands for S3."""

    protocol, store, pseudo_dirs = ("s3",), {}, [""]

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("s3://").strip("/")


def test_other_stores_through_fsspec(sounds):
    content = (sounds / "b.flac").read_bytes()
    fsspec.register_implementation("s3", Bucket, clobber=True)
    try:
        Bucket().pipe("s3://bucket/b.flac", content)
        [file] = read_source("s3://bucket/b.flac", fetch=True).files
        assert file.read_bytes() == content
        with pytest.raises(ManifestError, match=r"s3://bucket/c\.flac: nothing lies there"):
            read_source("s3://bucket/c.flac", fetch=True)
    finally:
        fsspec.register_implementation("s3", "s3fs.S3FileSystem", clobber=True)
    with pytest.raises(ManifestError, match=r"gs:// needs another package .*pip install 'decar\[remote\]'"):
        read_source("gs://bucket/a.wav", fetch=True)

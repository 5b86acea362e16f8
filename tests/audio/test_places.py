"""Prefixes, tables, archives and Parquet files of an object store as SOURCE: the clips of the same things on disk."""

import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import numpy as np
import pandas as pd
import pytest
from fsspec.implementations.memory import MemoryFile

import decar
import decar.embedder
from decar import objects
from decar.audio import Manifest, arrival, origin, remote
from decar.audio.origin import Origin
from decar.audio.source import read_source
from decar.errors import DecarError, ManifestError
from tests.audio.sounds import tone, write
from tests.audio.stores import Bucket, bucket
from tests.corpora.test_download import server

__all__ = ["bucket", "server"]
N = 12


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("DECAR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sources" / "fetched"


@pytest.fixture
def folder(tmp_path, bucket):
    """Sounds of two kinds and one bad file, on disk and at s3://b/birds."""
    home = tmp_path / "birds"
    for i in range(N):
        write(home / ("owl", "größe")[i % 2] / f"{i:02}.wav", tone(0.2 + 0.02 * i, hz=300.0 + 50 * i))
    (home / "owl" / "bad.wav").write_text("no sound")
    (home / "notes.txt").write_text("no sound at all")
    (home / ".hidden").mkdir()
    shutil.copy(home / "owl" / "00.wav", home / ".hidden" / "x.wav")
    upload(bucket, home, "s3://b/birds")
    bucket.pipe_file("s3://b/birds2/other.wav", b"of another prefix")
    return home


def upload(bucket, folder, address):
    for file in folder.rglob("*"):
        if file.is_file():
            bucket.pipe_file(f"{address}/{file.relative_to(folder).as_posix()}", file.read_bytes())


def equal(first, second):
    pd.testing.assert_frame_equal(first.table, second.table)
    pd.testing.assert_frame_equal(first.bad, second.bad)
    assert np.abs(first.vectors - second.vectors).max() < 1e-6


@pytest.mark.parametrize("address", ["s3://b/birds", "s3://b/birds/", "S3://b/birds"])
def test_a_prefix_is_the_folder(folder, address):
    here, there = decar.embed(folder, progress=False), decar.embed(address, fetch=True, progress=False)
    equal(there, here)
    assert there.bad["path"].tolist() == ["owl/bad.wav"]
    assert len(there.table) == N
    assert len(Bucket.sent) == N + 1
    equal(decar.embed(address, fetch=True, progress=False), here)
    assert len(Bucket.sent) == N + 1  # nothing is sent twice


def test_other_commands_have_all_files_at_once(folder):
    clips = read_source("s3://b/birds", fetch=True)
    assert clips.origin is None
    assert [file.read_bytes() for file in clips.files] == [(folder / p).read_bytes() for p in clips.table["path"]]
    assert clips.table["label"].tolist() == Manifest.from_folder(folder).table["label"].tolist()


def test_nothing_is_listed_unasked(folder):
    with pytest.raises(ManifestError, match=r"s3://b/birds is an address, and nothing is fetched .* pass --fetch"):
        decar.embed("s3://b/birds", progress=False)
    assert (Bucket.listings, Bucket.sent) == (0, [])


def test_a_changed_object_is_fetched_again(folder, bucket, cache, tmp_path):
    decar.embed("s3://b/birds", fetch=True, out=tmp_path / "a.parquet", progress=False)
    other = write(tmp_path / "other.wav", tone(0.2, hz=2000.0))
    assert len(other.read_bytes()) == (folder / "owl" / "00.wav").stat().st_size
    bucket.pipe_file("s3://b/birds/owl/00.wav", other.read_bytes())
    del Bucket.sent[:]
    made = decar.embed("s3://b/birds", fetch=True, progress=False)
    assert Bucket.sent == ["/b/birds/owl/00.wav"]
    shutil.copy(other, folder / "owl" / "00.wav")
    equal(made, decar.embed(folder, progress=False))


@pytest.mark.parametrize("room", [True, False])
def test_a_store_that_stops_half_way_is_an_error_and_the_next_call_finishes(folder, tmp_path, monkeypatch, cache, room):
    monkeypatch.setattr(arrival, "fits", lambda *_: room)
    monkeypatch.setattr(arrival, "BATCH_BYTES", 1)
    monkeypatch.setattr(arrival, "GROUP_BYTES", 1)
    monkeypatch.setattr(decar.embedder, "BLOCK_FRAMES", 40)
    monkeypatch.setattr(arrival, "THREADS", 1)
    decar.embed("s3://b/birds", fetch=True, out=tmp_path / "never.parquet", progress=False)
    shutil.rmtree(cache)
    del Bucket.sent[:]
    monkeypatch.setattr(Bucket, "down_after", 8)
    with pytest.raises(ManifestError, match=r"^s3://b/birds: cannot be reached \(ConnectionError.*goes on from there$"):
        decar.embed("s3://b/birds", fetch=True, out=tmp_path / "often.parquet", progress=False)
    assert not (tmp_path / "often.parquet").exists()
    monkeypatch.setattr(Bucket, "down_after", None)
    decar.embed("s3://b/birds", fetch=True, out=tmp_path / "often.parquet", progress=False)
    assert N + 1 <= len(Bucket.sent) <= N + 1 + (0 if room else 4)  # without room, what was not committed comes again
    assert (tmp_path / "often.parquet").read_bytes() == (tmp_path / "never.parquet").read_bytes()
    assert (tmp_path / "often.parquet.bad.csv").read_bytes() == (tmp_path / "never.parquet.bad.csv").read_bytes()


def test_a_short_outage_is_waited_for(folder, bucket, monkeypatch, caplog):
    fails = iter([ConnectionError("reset by peer")] * 2)
    answer = Bucket.answer

    def flaky(self):
        if error := next(fails, None):
            raise error
        answer(self)

    monkeypatch.setattr(Bucket, "answer", flaky)
    assert len(decar.embed("s3://b/birds", fetch=True, progress=False).table) == N
    assert caplog.text.count("cannot be reached (ConnectionError: reset by peer); next try in 0 s") == 2


def test_an_object_that_is_refused_costs_one_line(folder):
    Bucket.refused["/b/birds/owl/02.wav"] = PermissionError("InvalidObjectState: it is in the archive")
    made = decar.embed("s3://b/birds", fetch=True, progress=False)
    assert made.bad["path"].tolist() == ["owl/02.wav", "owl/bad.wav"]
    assert made.bad["reason"][0].startswith("cannot be fetched: access denied (InvalidObjectState: it is in the archiv")
    assert len(made.table) == N - 1


def test_a_store_that_refuses_everything_is_an_error(folder, monkeypatch):
    """Credentials may run out on the way: the sounds that come after are not bad."""
    clips = read_source("s3://b/birds", fetch=True, later=True)
    denied = PermissionError("ExpiredToken")
    monkeypatch.setattr(Bucket, "answer", lambda self: (_ for _ in ()).throw(denied))
    with pytest.raises(ManifestError, match=r"s3://b/birds: access denied \(ExpiredToken\); check .*AWS_ACCESS_KEY_ID"):
        decar.embed(clips, progress=False)


def test_without_room_files_are_deleted_after_use(folder, monkeypatch, cache):
    here = decar.embed(folder, progress=False)
    monkeypatch.setattr(arrival, "fits", lambda *_: False)
    monkeypatch.setattr(arrival, "BATCH_BYTES", 1)
    monkeypatch.setattr(arrival, "GROUP_BYTES", 1)
    monkeypatch.setattr(arrival, "ROOM", 1)
    monkeypatch.setattr(arrival, "THREADS", 2)
    held, fetch = [], origin.Origin.fetch

    def counted(self, path, folder):
        reason = fetch(self, path, folder)
        held.append(len(list(folder.rglob("*.wav"))))
        return reason

    monkeypatch.setattr(origin.Origin, "fetch", counted)
    equal(decar.embed("s3://b/birds", fetch=True, progress=False), here)
    assert max(held) <= 5  # a batch that is read, one that is packed, one that waits, one a thread
    assert not list(cache.rglob("*.wav"))
    assert not list(cache.glob("passing-*"))


@pytest.mark.parametrize(
    ("n_bytes", "free", "spare", "fits"),
    [(50, 100, 0, True), (51, 100, 0, False), (10, 110, 0.1, True), (11, 110, 0.1, False), (0, 99, 0.1, False)],
)
def test_files_fit_in_half_of_the_free_room_and_leave_a_part_of_the_disk(
    monkeypatch, tmp_path, n_bytes, free, spare, fits
):
    seen = []
    monkeypatch.setattr(
        shutil, "disk_usage", lambda at: seen.append(at) or SimpleNamespace(total=1000, free=free, used=1000 - free)
    )
    assert origin.fits(n_bytes, tmp_path / "not" / "yet", spare) is fits
    assert seen == [tmp_path]


def test_what_a_killed_process_has_left_is_deleted(folder, monkeypatch, cache):
    monkeypatch.setattr(arrival, "fits", lambda *_: False)
    write(cache / "passing-old" / "x.wav", tone(0.1))
    decar.embed("s3://b/birds", fetch=True, progress=False)
    assert not list(cache.glob("passing-*"))


def test_where_all_files_are_needed_at_once_a_lack_of_room_is_said_first(folder, monkeypatch):
    monkeypatch.setattr(origin, "fits", lambda *_: False)
    with pytest.raises(
        ManifestError, match=r"s3://b/birds: 0\.0 GB are to be fetched, more than half of the free room"
    ):
        read_source("s3://b/birds", fetch=True)
    assert Bucket.sent == []


def test_a_part_of_the_clips_is_fetched_where_it_is_embedded(folder, monkeypatch, tmp_path, cache):
    """As on a worker with a cache of its own; what the clips are is known without their files."""
    clips = read_source("s3://b/birds", fetch=True, later=True)
    assert Bucket.sent == []
    part = pickle.loads(pickle.dumps(clips.take(range(3, 7))))
    assert [*part.origin.objects] == clips.table["path"].tolist()[3:7]
    assert part.fingerprint() == clips.take(range(3, 7)).fingerprint() != clips.take(range(2, 6)).fingerprint()
    monkeypatch.setenv("DECAR_CACHE", str(tmp_path / "elsewhere"))
    here = decar.embed(folder, progress=False)
    assert np.abs(decar.embed(part, progress=False).vectors - here.vectors[3:7]).max() < 1e-5
    assert not cache.exists()


def test_an_object_that_changes_after_it_was_listed_is_an_error(folder, bucket):
    clips = read_source("s3://b/birds", fetch=True, later=True)
    bucket.pipe_file("s3://b/birds/owl/00.wav", b"shorter")
    with pytest.raises(ManifestError, match=r"s3://b/birds/owl/00\.wav: it has changed since it was listed"):
        decar.embed(clips, progress=False)


def test_an_object_that_changes_while_it_is_read_is_an_error(bucket, monkeypatch, cache):
    """Between two requests, to an object of equal size: what has come is half of each."""
    monkeypatch.setattr(objects, "BLOCK", 100)
    bucket.pipe_file("s3://b/one/a.wav", b"a" * 150)
    clips, open_ = read_source("s3://b/one", fetch=True, later=True), Bucket._open

    def changes(self, path, mode="rb", **options):
        source = open_(self, path, mode, **options)
        source.details = self.info(path)
        self.store[self._strip_protocol(path)] = MemoryFile(self, path, b"b" * 150)
        return source

    monkeypatch.setattr(Bucket, "_open", changes)
    with pytest.raises(ManifestError, match=r"s3://b/one/a.wav: it has changed since it was listed, or while it was"):
        origin.with_files(clips)
    bucket.pipe_file("s3://b/one/a.wav", b"a" * 150)
    table = Manifest(pd.DataFrame({"path": ["s3://b/one/a.wav"]}), cache)
    with pytest.raises(ManifestError, match=r"s3://b/one/a.wav: it has changed since it was listed, or while it was"):
        remote.fetched(table)
    assert not list(cache.rglob("a.wav"))


def test_a_file_that_is_deleted_before_it_is_read_is_an_error_and_not_a_missing_sound(folder, monkeypatch, tmp_path):
    """By who cleans the cache, or by another machine where the file system has no locks."""
    fetch, once = Origin.fetch, ["owl/02.wav"]

    def fetched(self, path, folder):
        reason = fetch(self, path, folder)
        if path in once:
            once.remove(path)
            (folder / path).unlink()
        return reason

    monkeypatch.setattr(Origin, "fetch", fetched)
    out = tmp_path / "e.parquet"
    with pytest.raises(
        DecarError, match=r"owl/02\.wav: was there a moment ago and is gone: was the cache cleaned.*run the same"
    ):
        decar.embed("s3://b/birds", fetch=True, out=out, progress=False)
    equal(decar.embed("s3://b/birds", fetch=True, out=out, progress=False), decar.embed(folder, progress=False))


def test_names_that_cannot_be_files_are_left_out(bucket, caplog, monkeypatch):
    names = ("a/../../x.wav", "a//x.wav", f"{'a' * 201}.wav", "12::30.wav", "good.wav")
    found = {f"b/odd/{name}": {"size": 1, "ETag": name} for name in names}
    monkeypatch.setattr(Bucket, "find", lambda *_, **__: found)
    clips = read_source("s3://b/odd", fetch=True, later=True)
    assert clips.table["path"].tolist() == ["good.wav"]
    assert caplog.text.count("left out: s3://b/odd/") == 3  # `..` counts as hidden
    assert read_source("s3://b/odd/**", fetch=True, later=True).table["path"].tolist() == ["good.wav"]
    assert caplog.text.count("left out: s3://b/odd/a/../../x.wav (its name cannot be that of a file)") == 1


@pytest.mark.parametrize("names", [["../../../../x.parquet"], ["../../../../x.parquet", "y.parquet"]])
def test_no_object_leads_out_of_the_cache(bucket, monkeypatch, names, tmp_path, cache):
    bucket.pipe_file("s3://b/odd/y.parquet", b"y")
    monkeypatch.setattr(Bucket, "find", lambda *_, **__: {f"b/odd/{name}": {"size": 1, "ETag": name} for name in names})
    with pytest.raises(ManifestError, match="its name cannot be that of a file"):
        read_source("s3://b/odd/**", fetch=True)
    assert not list(tmp_path.rglob("x.parquet"))
    assert set(Bucket.sent) <= {"/b/odd/y.parquet"}


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("s3://b/none", "s3://b/none: nothing lies there, or there is no such bucket"),
        ("s3://none", "s3://none: nothing lies there, or there is no such bucket"),
        ("s3://b/notes", r"no audio found below s3://b/notes: 1 objects \(1 .txt\)"),
        ("s3://KEY:hunter2@b/birds", r"s3://…@b/birds: holds a password.*AWS_ACCESS_KEY_ID"),
        ("zip://a::s3://b/a.zip", "unknown kind of address"),
        ("gs://b/birds", r"gs:// needs another package .*pip install 'decar\[remote\]'"),
    ],
)
def test_what_is_not_there_is_one_line(bucket, source, says, caplog):
    bucket.pipe_file("s3://b/notes/n.txt", b"x")
    with pytest.raises(ManifestError, match=says) as caught:
        read_source(source, fetch=True)
    assert "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value) + caplog.text


def difference(address, folder, rows=slice(None)):
    """Of the embeddings of what is at an address from those of the folder's good files."""
    paths = sorted(f"{kind}/{i:02}.wav" for i in range(N) for kind in [("owl", "größe")[i % 2]])
    here = decar.embed(pd.Series(paths).map(lambda path: folder / path)[rows].tolist(), progress=False)
    return np.abs(decar.embed(address, fetch=True, progress=False).vectors - here.vectors).max()


@pytest.fixture
def sounds(folder):
    return sorted(path for path in folder.rglob("*.wav") if path.stem.isdigit() and ".hidden" not in path.parts)


def test_archives_and_tables_at_an_address(folder, bucket, tmp_path, sounds, server):
    archive = Path(shutil.make_archive(str(tmp_path / "birds"), "zip", folder)).read_bytes()
    paths = [path.relative_to(tmp_path).as_posix() for path in sounds]
    bucket.pipe_file("s3://b/birds.zip", archive)
    bucket.pipe_file("s3://b/lists/t.csv", "\n".join(["path", *(f"../{path}" for path in paths)]).encode())
    server.files = {"/x/birds.zip": archive, "/x/t.csv": f"path\n{paths[0]}".encode()}
    server.files[f"/x/{quote(paths[0])}"] = sounds[0].read_bytes()
    for address in ("s3://b/birds.zip", "s3://b/lists/t.csv", f"{server.url}/x/birds.zip"):
        assert difference(address, folder) < 1e-6, address
    assert difference(f"{server.url}/x/t.csv", folder, slice(1)) < 1e-6


def test_signs_in_the_paths_of_a_table_do_not_end_its_addresses(tmp_path, sounds, server):
    """A server that has `a` too would send it for a#1.wav and a#2.wav."""
    names = ["a#1.wav", "a#2.wav", "a?.wav", "50%.wav"]
    server.files = {f"/x/{quote(name)}": file.read_bytes() for name, file in zip(names, sounds, strict=False)}
    server.files |= {"/x/a": sounds[5].read_bytes(), "/x/t.csv": "\n".join(["path", *names]).encode()}
    found = read_source(f"{server.url}/x/t.csv?of=a/b", fetch=True, path_column="path")
    assert [file.read_bytes() for file in found.files] == [file.read_bytes() for file in sounds[:4]]


def test_parquet_files_and_patterns_at_an_address(folder, bucket, tmp_path, sounds, cache):
    rows = [{"bytes": path.read_bytes(), "path": path.name} for path in sounds]
    for part in (0, 1):
        pd.DataFrame({"audio": rows[part * 5 :][: 5 + 10 * part]}).to_parquet(tmp_path / "p.parquet")
        bucket.pipe_file(f"s3://b/data/train-{part}.parquet", (tmp_path / "p.parquet").read_bytes())
    bucket.pipe_file("s3://b/data/train-9.parquet", b"of another upload")
    with pytest.raises(ManifestError, match=r"train-9\.parquet cannot be read as Parquet"):
        read_source("s3://b/data/train-[9]*", fetch=True)
    bucket.rm_file("s3://b/data/train-9.parquet")  # its copy must not come in
    assert difference("s3://b/data/train-*.parquet", folder) < 1e-6
    assert difference("s3://b/data/train-1.parquet", folder, slice(5, None)) < 1e-6
    assert difference("s3://b/birds/größe/*.wav", folder, slice(0, 6)) < 1e-6
    Bucket.refused["/b/data/train-0.parquet"] = PermissionError("AccessDenied")
    shutil.rmtree(cache)
    with pytest.raises(ManifestError, match=r"^s3://b/data/train-0\.parquet: cannot be fetched: access denied"):
        read_source("s3://b/data/train-*.parquet", fetch=True)
    with pytest.raises(ManifestError, match=r"s3://b/data/\*\.flac: no object fits this pattern"):
        read_source("s3://b/data/*.flac", fetch=True)

"""`decar embed --out s3://…`: what a local output is, there whole or not at all, and sent again without work."""

import numpy as np
import pandas as pd
import pytest

import decar
from decar import embedder
from decar.audio.cache import cached, delete
from decar.errors import ConfigError
from tests.audio.sounds import tone, write
from tests.audio.stores import Bucket, bucket

__all__ = ["bucket"]
OUT = "s3://b/results/e.parquet"


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("DECAR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path, bucket):
    for i in range(5):
        write(tmp_path / "in" / f"{i}.wav", tone(0.2 + 0.05 * i, hz=300.0 + 100 * i))
    (tmp_path / "in" / "bad.wav").write_text("no sound")
    bucket.pipe_file("s3://b/there", b"")
    return tmp_path / "in"


def there(name):
    return Bucket.store[f"/b/results/{name}"].getvalue()


@pytest.mark.parametrize(("suffix", "names"), [("parquet", ["e.parquet"]), ("npy", ["e.npy", "e.npy.paths.csv"])])
def test_what_is_written_there_is_what_is_written_here(folder, bucket, tmp_path, cache, suffix, names):
    decar.embed(folder, out=tmp_path / f"e.{suffix}", progress=False)
    made = decar.embed(folder, out=f"s3://b/results/e.{suffix}", progress=False)
    assert len(made.table) == 5
    names = [*names, f"e.{suffix}.bad.csv"]
    assert sorted(name for name in Bucket.store if "results" in name) == sorted(f"/b/results/{n}" for n in names)
    for name in names:
        assert there(name) == (tmp_path / name).read_bytes()
    assert not list((cache / "outputs").rglob("*"))
    (folder / "bad.wav").unlink()
    decar.embed(folder, out=f"s3://b/results/e.{suffix}", progress=False)
    assert f"/b/results/e.{suffix}.bad.csv" not in Bucket.store  # nothing is bad any more


def test_an_output_that_could_not_be_sent_is_sent_by_the_next_call(folder, bucket, monkeypatch, cache, tmp_path):
    monkeypatch.setattr(Bucket, "read_only", True)
    with pytest.raises(ConfigError, match=r"--out s3://b/results/e\.parquet.*: access denied \(Access Denied\); check"):
        decar.embed(folder, out=OUT, progress=False)
    assert not [name for name in Bucket.store if "results" in name]
    assert len(cached(cache)["outputs"]) == 1
    monkeypatch.setattr(Bucket, "read_only", False)
    asked, read = [], embedder.read_clips
    monkeypatch.setattr(embedder, "read_clips", lambda jobs, *rest: asked.extend(jobs) or read(jobs, *rest))
    decar.embed(folder, out=OUT, progress=False)
    assert asked == []
    monkeypatch.setattr(embedder, "read_clips", read)
    decar.embed(folder, out=tmp_path / "e.parquet", progress=False)
    assert there("e.parquet") == (tmp_path / "e.parquet").read_bytes()
    assert cached(cache)["outputs"] == []


def test_rows_that_were_not_sent_can_be_cleared(folder, bucket, monkeypatch, cache):
    monkeypatch.setattr(Bucket, "read_only", True)
    with pytest.raises(ConfigError):
        decar.embed(folder, out=OUT, progress=False)
    [left] = cached(cache)["outputs"]
    delete(left)
    assert not list((cache / "outputs").rglob("*"))


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("s3://none/e.parquet", r"--out s3://none/e\.parquet: there is no such object or bucket"),
        ("s3://b/e.csv", r"--out s3://b/e\.csv: the name has to end in \.parquet or \.npy"),
        ("https://example.org/e.parquet", "unknown kind of address; known are s3://"),
        ("s3://KEY:hunter2@b/e.parquet", "holds a password"),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_the_work(folder, monkeypatch, out, says):
    monkeypatch.setattr(embedder, "read_clips", None)
    with pytest.raises(decar.errors.DecarError, match=says) as caught:
        decar.embed(folder, out=out, progress=False)
    assert "hunter2" not in str(caught.value)


def test_a_store_that_is_down_is_said_before_the_work(folder, monkeypatch):
    monkeypatch.setattr(Bucket, "down_after", 0)
    monkeypatch.setattr(embedder, "read_clips", None)
    with pytest.raises(ConfigError, match=r"--out s3://b/results/e\.parquet: cannot be reached \(ConnectionError"):
        decar.embed(folder, out=OUT, progress=False)


def test_from_a_store_to_a_store(folder, bucket, tmp_path):
    for file in folder.iterdir():
        bucket.pipe_file(f"s3://b/in/{file.name}", file.read_bytes())
    decar.embed("s3://b/in", fetch=True, out=OUT, progress=False)
    (tmp_path / "e.parquet").write_bytes(there("e.parquet"))
    found, here = pd.read_parquet(tmp_path / "e.parquet"), decar.embed(folder, progress=False)
    assert found["path"].tolist() == here.table["path"].tolist()
    assert np.abs(np.stack(found["embedding"]) - here.vectors).max() < 1e-6
    assert there("e.parquet.bad.csv").count(b"\n") == 2

"""s3fs against moto's S3 server: `make test-s3`, in an environment of its own, as botocore wants an older dateutil."""

import threading
import urllib.request

import numpy as np
import pandas as pd
import pytest

from decar import objects
from decar.audio import origin
from decar.audio.source import read_source
from decar.errors import ManifestError
from tests.audio.sounds import tone, write

pytestmark = pytest.mark.s3
N = 200
SECRET = "wJalrXUtnFEMI/hunter2"


class Store:
    """A server that can be stopped and started again; what it holds stays."""

    def __init__(self):
        self.port, self.server = 0, None

    def start(self):
        from moto.server import ThreadedMotoServer

        self.server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self.server.start()
        _, self.port = self.server.get_host_and_port()

    def stop(self):
        if self.server:
            self.server.stop()
        self.server = None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def ask(self, path, body=b""):
        header = {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(self.url + path, body, header, method="POST")).read()


@pytest.fixture
def store(monkeypatch, tmp_path):
    made = Store()
    made.start()
    made.ask("/moto-api/reset")
    for name, value in {
        "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ENDPOINT_URL": made.url,
        "AWS_DEFAULT_REGION": "us-east-1", "MOTO_S3_DEFAULT_MAX_KEYS": "100",
        "AWS_EC2_METADATA_DISABLED": "true", "DECAR_CACHE": str(tmp_path / "cache"),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(objects, "WAITS", (0.5,))
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    yield made
    made.stop()


@pytest.fixture
def client(store):
    import boto3

    made = boto3.client("s3")
    made.create_bucket(Bucket="birds")
    return made


@pytest.fixture
def folder(client, tmp_path):
    """Sounds on disk and at s3://birds/p."""
    for i in range(N):
        write(tmp_path / "in" / ("owl", "größe")[i % 2] / f"{i:03}.wav", tone(0.2 + i / 400, hz=200.0 + 10 * i))
    (tmp_path / "in" / "owl" / "bad.wav").write_text("no sound")
    for file in (tmp_path / "in").rglob("*.wav"):
        client.upload_file(str(file), "birds", f"p/{file.relative_to(tmp_path / 'in').as_posix()}")
    client.put_object(Bucket="birds", Key="p/owl/", Body=b"")  # as consoles mark folders
    client.put_object(Bucket="birds", Key="p2/x.wav", Body=b"of another prefix")
    return tmp_path / "in"


def stopped_after(n, store, monkeypatch, again=None):
    """Stop the server once n objects were fetched; start it again after some seconds."""
    count, fetch = iter(range(10 * N)), origin.Origin.fetch

    def stopping(self, path, folder):
        if next(count) == n:
            store.stop()
            if again is not None:
                threading.Timer(again, store.start).start()
        return fetch(self, path, folder)

    monkeypatch.setattr(origin.Origin, "fetch", stopping)


def test_a_server_that_stops_half_way(decar, folder, client, store, monkeypatch, tmp_path):
    """The first call ends with a line, the second one finishes; rows are those of the folder, a bad file is a line."""
    assert decar("embed", str(folder), "--out", "here.parquet").code == 0
    words = ["embed", "s3://birds/p", "--fetch", "--out", "s3://birds/results/e.parquet"]
    with monkeypatch.context() as patch:
        stopped_after(N // 2, store, patch)
        outcome = decar(*words)
    assert outcome.code == 2
    assert len(outcome.errors) == 1
    assert "error: s3://birds/p: cannot be reached (EndpointConnectionError: Could not connect" in outcome.errors[0]
    assert "the same command goes on from there" in outcome.errors[0]
    fetched = len(list((tmp_path / "cache").rglob("*.wav")))
    assert N // 3 < fetched < N
    store.start()
    outcome = decar(*words)
    assert outcome.code == 0, outcome.err
    client.download_file("birds", "results/e.parquet", str(tmp_path / "there.parquet"))
    here, there = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("here", "there"))
    assert there["path"].tolist() == here["path"].tolist()
    assert there["label"].tolist() == here["label"].tolist()
    assert np.abs(np.stack(there["embedding"]) - np.stack(here["embedding"])).max() < 1e-6
    bad = client.get_object(Bucket="birds", Key="results/e.parquet.bad.csv")["Body"].read()
    assert bad == (tmp_path / "here.parquet.bad.csv").read_bytes()
    assert bad.count(b"\n") == 2
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes()
    assert SECRET not in outcome.err


def test_a_server_that_comes_back_is_waited_for(decar, folder, store, monkeypatch):
    monkeypatch.setattr(objects, "WAITS", (1.0, 2.0, 4.0))
    stopped_after(N // 2, store, monkeypatch, again=5.0)
    outcome = decar("embed", "s3://birds/p", "--fetch", "--out", "e.parquet")
    assert outcome.code == 0, outcome.err


def test_all_pages_of_a_listing(client):
    names = [f"{i:03}.wav" for i in range(250)]
    for name in names:
        client.put_object(Bucket="birds", Key=f"many/{name}", Body=b"x")
    assert client.list_objects_v2(Bucket="birds")["KeyCount"] == 100
    assert read_source("s3://birds/many", fetch=True, later=True).table["path"].tolist() == names


def test_a_changed_object(client, tmp_path):
    client.put_object(Bucket="birds", Key="a/x.wav", Body=b"first")
    [file] = read_source("s3://birds/a", fetch=True).files
    client.put_object(Bucket="birds", Key="a/x.wav", Body=b"other")
    clips = read_source("s3://birds/a", fetch=True, later=True)
    [file] = read_source("s3://birds/a", fetch=True).files
    assert file.read_bytes() == b"other"
    client.put_object(Bucket="birds", Key="a/x.wav", Body=b"third")
    with pytest.raises(ManifestError, match=r"s3://birds/a/x\.wav: it has changed since it was listed"):
        clips.origin.fetch("x.wav", tmp_path)


@pytest.mark.parametrize("door", ["--fetch", "--out"])
def test_wrong_credentials_and_missing_buckets_are_one_line(decar, client, store, monkeypatch, door, sound_folder):
    client.put_object(Bucket="birds", Key="a/x.wav", Body=b"first")

    def said(address):
        words = [address, "--fetch"] if door == "--fetch" else [str(sound_folder), "--out", f"{address}/e.parquet"]
        outcome = decar("embed", *words)
        assert (outcome.code, len(outcome.errors)) == (2, 1), outcome.err
        assert SECRET not in outcome.err
        assert address in outcome.errors[0]
        return outcome.errors[0]

    assert "bucket" in said("s3://none/a")
    store.ask("/moto-api/reset-auth", b"0")
    try:
        assert "access denied" in said("s3://birds/a")
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.setenv("HOME", "/nonexistent")
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        assert "access denied" in said("s3://birds/a")
    finally:
        store.ask("/moto-api/reset-auth", b"Infinity")

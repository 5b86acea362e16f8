"""wandb at its boundary: a fake of its client backed by a folder, and the real client without a login."""

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import requests
import soundfile
import wandb

from decar.cli.clusters import may_load
from decar.digests import digest_of
from decar.errors import BundleError, DecarError, SearchError
from decar.models import load_encoder, read_facts, save_bundle
from decar.models.artifacts import WANDB, fetch_artifact, origin_of, parse_artifact
from decar.models.bundle import bundle_file, exact_name
from decar.neighbours.index import EmbeddingTable
from decar.neighbours.query import find_queries
from tests.conftest import make_encoder


@pytest.fixture
def bundle(tmp_path):
    encoder = make_encoder("conv", widths=[4], hidden=8, seed=1)
    return save_bundle(encoder, tmp_path / "made" / "encoder.safetensors", {"data": "mini", "clips": 12})


@pytest.fixture
def server(tmp_path, monkeypatch):
    """`ROOT/ENTITY/PROJECT/NAME/vN/…` are artifacts; `latest` is the last; each call is noted."""
    fetch_artifact.cache_clear()
    monkeypatch.setenv("DECAR_CACHE", str(tmp_path / "cache"))
    root, calls = tmp_path / "server", []

    class Artifact:
        def __init__(self, folder):
            self.folder, self.version = folder, folder.name
            self.digest = "".join(map(digest_of, folder.glob("*.safetensors")))

        def get_entry(self, name):
            if not (self.folder / name).is_file():
                raise KeyError(f"Path not contained in artifact: {name}")
            return SimpleNamespace(download=lambda root: shutil.copy(self.folder / name, Path(root) / name))

        def logged_by(self):
            return SimpleNamespace(path=["me", "decar", "abc123"])

    class Api:
        def __init__(self, timeout):
            assert timeout > 0

        def artifact(self, name):
            calls.append(name)
            place, _, version = name.partition(":")
            versions = sorted((root / place).glob("v*"))
            found = versions[-1:] if version == "latest" else [v for v in versions if v.name == version]
            if not found:
                raise ValueError(f"Unable to fetch artifact with name {name}")
            return Artifact(found[0])

    monkeypatch.setattr(wandb, "Api", Api)
    return root, calls


def put(root, bundle, place="me/decar/encoder-abc123", version="v0"):
    (root / place / version).mkdir(parents=True)
    shutil.copy(bundle, root / place / version)
    (root / place / version / "train.py").write_text("raise SystemExit('code of an artifact')")


def test_an_artifact_is_loaded_and_kept_with_its_version(bundle, server, tmp_path):
    root, calls = server
    put(root, bundle)
    address = f"{WANDB}me/decar/encoder-abc123:v0"
    assert load_encoder(address).hash() == load_encoder(bundle).hash()
    assert read_facts(address) == {"data": "mini", "clips": 12}
    file = bundle_file(address)
    assert file == tmp_path / "cache/artifacts/me/decar/encoder-abc123/v0/encoder.safetensors"
    assert sorted(path.name for path in file.parent.iterdir()) == ["encoder.safetensors", "origin.json"]
    assert origin_of(file) == "me/decar/abc123"
    assert calls == ["me/decar/encoder-abc123:v0"]
    fetch_artifact.cache_clear()  # another process
    shutil.rmtree(root)
    assert load_encoder(address).hash() == load_encoder(bundle).hash(), "needs no server"
    assert len(calls) == 1


def test_latest_means_one_version_in_a_process_and_results_name_it(bundle, server):
    root, calls = server
    put(root, bundle)
    address = f"{WANDB}me/decar/encoder-abc123"
    assert exact_name(address) == f"{address}:v0"
    other = save_bundle(make_encoder("conv", widths=[4], hidden=8, seed=2), bundle.with_name("encoder.safetensors"))
    put(root, other, version="v1")
    assert exact_name(address) == f"{address}:v0"
    fetch_artifact.cache_clear()
    assert exact_name(address) == f"{address}:v1"
    assert load_encoder(address).hash() == load_encoder(other).hash()
    assert calls == ["me/decar/encoder-abc123:latest"] * 2
    assert exact_name("small") == "small"


def test_a_version_that_was_made_anew_is_fetched_anew_where_wandb_is_asked(bundle, server, caplog):
    caplog.set_level("INFO")
    root, calls = server
    put(root, bundle)
    address = f"{WANDB}me/decar/encoder-abc123"
    first = load_encoder(address).hash()
    shutil.rmtree(root / "me/decar/encoder-abc123")
    other = save_bundle(make_encoder("conv", widths=[4], hidden=8, seed=2), bundle.with_name("encoder.safetensors"))
    put(root, other)
    fetch_artifact.cache_clear()  # another process
    assert load_encoder(f"{address}:v0").hash() == first, "wandb is not asked"
    assert load_encoder(address).hash() == load_encoder(other).hash() != first
    assert "v0 has been made anew since it was fetched" in caplog.text
    assert origin_of(bundle_file(address)) == "me/decar/abc123"
    fetch_artifact.cache_clear()
    caplog.clear()
    assert load_encoder(f"{address}:v0").hash() == load_encoder(other).hash()
    assert load_encoder(address).hash() == load_encoder(other).hash()
    assert "made anew" not in caplog.text
    assert len(calls) == 3


def test_what_is_not_there_is_an_error_that_says_what_to_do(bundle, server):
    root, _ = server
    put(root, bundle)
    place = f"{WANDB}me/decar/encoder-abc123"
    load_encoder(f"{place}:v0")
    with pytest.raises(BundleError, match=rf"{place}:v7: no such artifact or version.*; the cache has {place}:v0$"):
        load_encoder(f"{place}:v7")
    (root / "me/decar/empty/v0").mkdir(parents=True)
    with pytest.raises(BundleError, match=r"the artifact has no encoder.safetensors; was it logged with logger.wandb"):
        load_encoder(f"{WANDB}me/decar/empty:v0")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (requests.ConnectionError("no route"), r"wandb cannot be reached \(.*no route\); try again, or give a file$"),
        (ConnectionResetError(104, "reset"), r"wandb cannot be reached .* give a file$"),
        (OSError(28, "No space left on device"), r"cannot be kept in .*: the disk is full, make room$"),
    ],
)
def test_what_breaks_off_is_said_for_what_it_is_and_is_not_in_the_cache(bundle, server, monkeypatch, error, says):
    """An error of the network is an OSError too."""
    put(server[0], bundle)

    def breaks(*args):
        raise error

    monkeypatch.setattr(shutil, "copy", breaks)
    with pytest.raises(BundleError, match=says):
        load_encoder(f"{WANDB}me/decar/encoder-abc123:v0")


@pytest.mark.parametrize(
    "address", ["name", "me/decar", "me/decar/name:", "me/../name:v0", "me/decar/a b", "me/decar/n:v0:v1", "/me/d/n:v0"]
)
def test_what_is_no_address_is_refused(address, server):
    with pytest.raises(BundleError, match="give wandb://ENTITY/PROJECT/NAME:VERSION"):
        load_encoder(WANDB + address)
    assert not server[1]


def test_an_address(server):
    assert parse_artifact("wandb://me/decar/encoder-1:v3") == ("me/decar/encoder-1", "v3")
    assert parse_artifact("wandb://me/decar/encoder-1") == ("me/decar/encoder-1", "latest")


@pytest.mark.parametrize("version", ["../../../x", "v1/../..", ""])
def test_a_version_of_the_server_is_no_path(version, bundle, server, monkeypatch, tmp_path):
    monkeypatch.setattr(
        wandb, "Api", lambda timeout: SimpleNamespace(artifact=lambda _: SimpleNamespace(version=version))
    )
    with pytest.raises(BundleError, match="its version is"):
        load_encoder(f"{WANDB}me/decar/encoder:latest")
    assert not (tmp_path / "cache").exists()


def test_what_is_damaged_on_the_way_is_refused(bundle, server):
    root, _ = server
    put(root, bundle)
    file = root / "me/decar/encoder-abc123/v0/encoder.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    with pytest.raises(BundleError, match="its digest differs"):
        load_encoder(f"{WANDB}me/decar/encoder-abc123:v0")


def test_the_real_client_without_a_login(tmp_path):
    """A new process, as wandb remembers logins; without a network."""
    code = f"import decar; decar.load_encoder('{WANDB}me/decar/encoder:v0')"
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    words = [sys.executable, "-c", code]
    done = subprocess.run(
        words, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL, check=False
    )  # fmt: skip
    assert "BundleError: wandb://me/decar/encoder:v0: wandb has no login here; run `wandb login`" in done.stderr


def test_a_table_or_clusters_that_name_an_artifact_download_nothing(server, tmp_path):
    sound = tmp_path / "a.wav"
    soundfile.write(sound, np.full(16000, 0.1), 16000)
    table = EmbeddingTable(tmp_path / "e.parquet", pd.DataFrame({"path": ["b.wav"]}), 3, {"bundle": "wandb://a/b/c:v0"})
    with pytest.raises(SearchError, match=r"nothing is downloaded .*pass --bundle wandb://a/b/c:v0"):
        find_queries([str(sound)], table)
    with pytest.raises(DecarError, match=r"nothing is downloaded .*pass --bundle wandb://a/b/c:v0"):
        may_load(tmp_path / "c.npz", "wandb://a/b/c:v0", None)
    assert not server[1]

"""The commands on archives and Parquet files of sounds, and on tables of addresses."""

import json
import re
import shutil

import pandas as pd
import pytest

from tests.audio.stores import Bucket, bucket
from tests.cli.helpers import write_recordings
from tests.cli.test_train import FAST
from tests.corpora.test_download import server
from tests.embedder.test_kill import finish, killed_after

__all__ = ["bucket", "server"]


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("DECAR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def zipped(folder):
    return shutil.make_archive(str(folder), "zip", folder)


def test_a_killed_embedding_of_an_archive_goes_on_with_the_same_bytes(sound_folder, cache, tmp_path):
    """Also where the cache has been cleared in between."""
    finish(zipped(sound_folder), tmp_path / "never.parquet")
    killed_after(1, f"{sound_folder}.zip", tmp_path / "often.parquet")
    shutil.rmtree(cache)
    assert (tmp_path / ".often.parquet.parts").is_dir()
    finish(f"{sound_folder}.zip", tmp_path / "often.parquet")
    assert (tmp_path / "often.parquet").read_bytes() == (tmp_path / "never.parquet").read_bytes()
    finish(sound_folder, tmp_path / "plain.parquet")
    plain, often = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("plain", "often"))
    pd.testing.assert_frame_equal(plain, often)


def test_search_finds_the_sounds_of_an_archive_by_its_name(decar, sound_folder, tmp_path):
    archive = zipped(sound_folder)
    assert decar("embed", archive, "--out", "e.parquet").code == 0
    outcome = decar("search", "low/0.wav", "e.parquet", "--row", "-n", "2", "--root", archive, "--html", "found.html")
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "found.html").read_text().count('src="data:audio') == 3


@pytest.mark.slow
def test_clusters_of_an_archive_and_its_page(decar, tmp_path):
    write_recordings([tmp_path / "field" / ("north", "south")[i % 2] / f"rec{i}.wav" for i in range(3)])
    archive = zipped(tmp_path / "field")
    shutil.rmtree(tmp_path / "field")
    outcome = decar("cluster", archive, "-k", "4")
    assert outcome.code == 0, outcome.err
    table = pd.read_csv(tmp_path / "clusters" / "clusters.csv")
    assert sorted(set(table["path"])) == ["north/rec0.wav", "north/rec2.wav", "south/rec1.wav"]
    assert (tmp_path / "clusters/audacity/north/rec0.wav.txt").is_file()
    page = (tmp_path / "clusters" / "report.html").read_text()
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])
    assert (data["title"], len(data["clips"]["sounds"])) == ("field.zip", 12)


def test_a_training_reads_an_archive(train, sound_folder, tmp_path):
    """A few seconds: it is a whole training."""
    words = ["trainer.max_epochs=1", "data=folder", f"data.root={zipped(sound_folder)}", "hydra.run.dir=run"]
    outcome = train(*FAST, *words)
    assert outcome.code == 0, outcome.err
    assert len(pd.read_parquet(tmp_path / "run" / "clusters.parquet")) == 12


def test_addresses_are_fetched_where_the_command_says_so(decar, train, server, sound_folder, tmp_path):
    server.files = {f"/{i}.wav": (sound_folder / "low" / f"{i}.wav").read_bytes() for i in (0, 3)}
    pd.DataFrame({"path": [f"{server.url}/{i}.wav" for i in (0, 3)]}).to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "t.csv").write_text((tmp_path / "t.csv").read_text().replace("path", "address"))
    words = ["t.csv", "--path-column", "address"]
    refusal = f"{server.url}/0.wav is an address, and nothing is fetched"
    for outcome in (
        decar("embed", *words),
        decar("cluster", *words, "-k", "2"),
        decar("fit", *words, "--column", "address"),
        train(*FAST, "data=csv", f"data.path={tmp_path / 't.csv'}", "data.path_column=address", "hydra.run.dir=run"),
    ):
        assert (outcome.code, len(outcome.errors), server.asked) == (2, 1, [])
        assert refusal in outcome.errors[0]
    outcome = decar("embed", *words, "--fetch")
    assert outcome.code == 0, outcome.err
    assert pd.read_parquet(tmp_path / "embeddings.parquet")["url"].tolist() == [f"{server.url}/{i}.wav" for i in (0, 3)]
    assert len(server.asked) == 2


def test_from_a_store_to_a_store(decar, bucket, sound_folder, tmp_path):
    for file in sound_folder.rglob("*.wav"):
        bucket.pipe_file(f"s3://b/in/{file.relative_to(sound_folder).as_posix()}", file.read_bytes())
    bucket.pipe_file("s3://b/in/low/bad.wav", b"no sound")
    assert "nothing is fetched" in decar("embed", "s3://b/in").errors[0]
    assert (Bucket.listings, Bucket.sent) == (0, [])
    outcome = decar("embed", "s3://b/in", "--fetch", "--out", "s3://b/out/e.parquet")
    assert outcome.code == 0, outcome.err
    assert "s3://b/out/e.parquet: 12 embeddings" in outcome.out
    assert "1 clips left out (s3://b/out/e.parquet.bad.csv)" in outcome.out
    (tmp_path / "there.parquet").write_bytes(Bucket.store["/b/out/e.parquet"].getvalue())
    assert decar("embed", str(sound_folder), "--out", "here.parquet").code == 0
    here, there = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("here", "there"))
    pd.testing.assert_frame_equal(here, there)


def test_commands_that_make_pages_have_the_sounds_of_a_store(decar, bucket, sound_folder, tmp_path):
    for file in sound_folder.rglob("*.wav"):
        bucket.pipe_file(f"s3://b/in/{file.name}", file.read_bytes())
    outcome = decar("cluster", "s3://b/in", "--fetch", "-k", "2")
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "clusters" / "report.html").read_text().count("data:audio") > 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["embed", "DIR", "--root", "s3://b/in"], "s3://b/in is an address, and a path on this disk is expected here"),
        (["cluster", "DIR", "--out", "s3://b/out"], "s3://b/out is an address"),
        (["fit", "s3://b/labels.csv"], "s3://b/labels.csv is an address"),
    ],
)
def test_an_address_where_a_path_is_expected_is_refused(decar, words, says):
    outcome = decar(*words)
    assert outcome.code == 2
    assert says in outcome.err


def test_a_training_does_not_take_a_prefix(train):
    outcome = train(*FAST, "data=folder", "data.root=s3://b/in", "hydra.run.dir=run")
    assert (outcome.code, len(outcome.errors)) == (2, 1)
    assert "s3://b/in is an address, and sounds are read from this disk here" in outcome.errors[0]

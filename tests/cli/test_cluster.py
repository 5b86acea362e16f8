"""`decar cluster`: from a folder to tables, labels and a page, and new sounds into the same clusters."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import soundfile

from decar.audio import ffmpeg
from decar.files import locked
from decar.neighbours.index import EmbeddingTable
from tests.cli.helpers import write_recordings

RATE = 16_000


@pytest.fixture
def recordings(tmp_path):
    """Six recordings of 20 s in two folders: four kinds of stretches of 5 s each, in another order every time."""
    write_recordings([tmp_path / "field" / ("north", "south")[i % 2] / f"rec{i}.wav" for i in range(6)])
    return tmp_path / "field"


def truth(table):
    return (table["path"].str.extract(r"rec(\d)")[0].astype(int) + table["start"].astype(int) // 5) % 4


def page_data(file):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', file.read_text(), re.S)[1])


@pytest.mark.parametrize("method", ["kmeans", "pic", "hdbscan"])
def test_recordings_become_clusters(decar, recordings, tmp_path, method):
    outcome = decar("cluster", "field", "--clusterer", method, *(["-k", "4"] if method == "kmeans" else []))
    assert outcome.code == 0, outcome.err
    assert "6 recordings, 2.0 min → 24 segments of 5 s" in outcome.err
    out = tmp_path / "clusters"
    table = pd.read_csv(out / "clusters.csv")
    assert list(table)[:6] == ["path", "start", "duration", "cluster", "distance", "novelty"]
    assert len(table) == 24
    in_cluster = table[table["cluster"] >= 0]
    assert len(in_cluster) >= 18
    pure = in_cluster.groupby("cluster").apply(lambda rows: truth(rows).value_counts().iloc[0]).sum() / len(in_cluster)
    assert pure > 0.75
    for name in ("audacity/north/rec0.wav.txt", "raven/south/rec1.wav.selections.txt", "report.html", "clusters.npz"):
        assert (out / name).is_file(), name
    assert len((out / "audacity/north/rec0.wav.txt").read_text().splitlines()) == 4
    data = page_data(out / "report.html")
    assert data["summary"] == {"recordings": 6, "seconds": 120.0, "clips": 24}
    assert sum(len(line["clusters"]) for line in data["when"]["lines"]["recordings"]) == 24
    assert data["title"] == "field"
    assert "north/rec0.wav · 0:15" in data["clips"]["name"]
    assert data["labels"] == ["label"]
    assert len(data["clips"]["sounds"]) == 24
    assert all(sound for sound, _, _ in data["clips"]["sounds"].values())


def test_centres_may_be_learned_from_some_segments(decar, recordings, tmp_path):
    assert decar("cluster", "field", "-k", "4", "--max-points", "12").code == 0
    table = pd.read_csv(tmp_path / "clusters/clusters.csv")
    assert len(table) == 24
    assert table["cluster"].between(0, 3).all()
    refused = decar("cluster", "field", "-k", "4", "--max-points", "3")
    assert refused.code == 2
    assert "k=4 is more than max_points=3" in refused.err
    assert "--max-points=1: not allowed" in decar("cluster", "field", "--max-points", "1").err


@pytest.mark.parametrize(
    ("words", "lock"),
    [
        (["cluster", "field", "-k", "4"], "clusters/.lock"),
        (["suggest", "field"], ".suggest.csv.lock"),
    ],
)
def test_results_are_of_one_call(decar, recordings, tmp_path, monkeypatch, words, lock):
    monkeypatch.setattr("decar.files.LOCK_WAIT", 0)
    (tmp_path / "clusters").mkdir()
    with locked(tmp_path / lock):
        outcome = decar(*words)
    assert outcome.code == 2
    assert re.search(r"in use by process \d+ on .*; wait until it has ended, or give another --out", outcome.errors[0])
    assert decar(*words).code == 0
    assert not (tmp_path / lock).exists()


def test_labels_of_one_s_own_stop_it_before_the_work(decar, recordings):
    (recordings / "raven").mkdir()
    outcome = decar("cluster", "field", "--out", "field")
    assert outcome.code == 2
    assert "field/raven: is not of an earlier call" in outcome.errors[0]
    assert not (recordings / "embeddings.parquet").exists()


def test_what_was_left_out_is_said_again_and_read_once_there_is_ffmpeg(decar, recordings, monkeypatch):
    """A table that is taken again is of the sounds that could be read then."""
    (recordings / "north/cut.wav").write_bytes(b"RIFF")
    (recordings / "south/coded.wav").write_bytes(b"\0\0\0\x1cftypM4A " + bytes(100))
    monkeypatch.setattr(ffmpeg, "available", lambda: False)
    for _ in range(2):
        outcome = decar("cluster", "field", "-k", "4")
        assert outcome.code == 0, outcome.err
        assert "north/cut.wav: left out: " in outcome.err
        assert re.search(r"south/coded.wav: left out: .* install the program ffmpeg", outcome.err)
        assert "2 of 8 clips left out, listed in clusters/embeddings.parquet.bad.csv" in outcome.err
    assert "taken again" in outcome.err
    monkeypatch.setattr(ffmpeg, "available", lambda: True)
    outcome = decar("cluster", "field", "-k", "4")
    assert "taken again" not in outcome.err
    assert "ffmpeg can read" in outcome.err
    assert "taken again" in decar("cluster", "field", "-k", "4").err
    (recordings.parent / "clusters/embeddings.parquet.bad.csv").write_text('a"b')
    assert "has no columns path and reason; the sounds are embedded anew" in decar("cluster", "field", "-k", "4").err


def test_new_sounds_get_the_clusters_that_there_are(decar, recordings, tmp_path):
    assert decar("cluster", "field/north", "-k", "4", "--out", "known").code == 0
    known = pd.read_csv(tmp_path / "known/clusters.csv")
    names = known.assign(kind=truth(known)).groupby("kind")["cluster"].agg(lambda c: c.mode()[0])
    outcome = decar("cluster", "field/south", "--like", "known", "--out", "new")
    assert outcome.code == 0, outcome.err
    assert "of the 4 clusters of known; median novelty" in outcome.out
    new = pd.read_csv(tmp_path / "new/clusters.csv")
    assert (new["cluster"] == truth(new).map(names)).mean() > 0.9
    for own in ("known", "known/clusters.npz"):
        outcome = decar("cluster", "field/south", "--like", own, "--out", "./known")
        assert outcome.code == 2
        assert "--out known: holds the clusters of --like and what they were made from" in outcome.errors[0]
    assert pd.read_csv(tmp_path / "known/clusters.csv").equals(known)
    again = decar("cluster", "field/north", "--like", "known/clusters.npz", "--out", "again")
    assert again.code == 0, again.err
    assert pd.read_csv(tmp_path / "again/clusters.csv")["cluster"].tolist() == known["cluster"].tolist()


def test_a_second_call_takes_the_embeddings_again_unless_something_has_changed(decar, sound_folder, tmp_path):
    assert decar("cluster", "sounds", "-k", "3").code == 0
    assert "taken again" in decar("cluster", "sounds", "-k", "4").err
    assert pd.read_csv(tmp_path / "clusters/clusters.csv")["cluster"].nunique() == 4
    other = decar("cluster", "sounds", "-k", "4", "--segment", "0.2")
    assert "taken again" not in other.err
    assert len(pd.read_csv(tmp_path / "clusters/clusters.csv")) == 36
    file = next(sound_folder.rglob("0.wav"))
    wave, _ = soundfile.read(file)
    soundfile.write(file, wave[::-1], RATE)
    assert "taken again" not in decar("cluster", "sounds", "-k", "4", "--segment", "0.2").err
    embeddings = tmp_path / "clusters/embeddings.parquet"
    content = bytearray(embeddings.read_bytes())
    content[len(content) // 2] ^= 1
    embeddings.write_bytes(content)
    mended = decar("cluster", "sounds", "-k", "4", "--segment", "0.2")
    assert mended.code == 0
    assert "embedded anew" in mended.err
    assert EmbeddingTable.open(embeddings).root == sound_folder
    sound_folder.rename(tmp_path / "moved")
    assert "taken again" in decar("cluster", "moved", "-k", "4", "--segment", "0.2").err
    assert EmbeddingTable.open(embeddings).root == tmp_path / "moved"


def test_short_clips_stay_whole_and_k_is_chosen(decar, sound_folder, tmp_path):
    outcome = decar("cluster", "sounds", "--segment", "none", "--seed", "1")
    assert outcome.code == 0, outcome.err
    assert "(k chosen)" in outcome.out
    table = pd.read_csv(tmp_path / "clusters/clusters.csv")
    assert table["duration"].tolist() == [0.5] * 12
    assert table["label"].tolist() == [path.split("/")[0] for path in table["path"]]
    assert page_data(tmp_path / "clusters/report.html")["clips"]["name"] == table["path"].tolist()


def test_a_bad_file_is_left_out_and_named(decar, sound_folder, tmp_path):
    (sound_folder / "bad.wav").write_bytes(b"RIFF")
    outcome = decar("cluster", "sounds", "-k", "3")
    assert outcome.code == 0, outcome.err
    assert "bad.wav: left out" in outcome.err
    assert len(pd.read_csv(tmp_path / "clusters/clusters.csv")) == 12
    assert pd.read_csv(tmp_path / "clusters/embeddings.parquet.bad.csv")["path"].tolist() == ["bad.wav"]


def test_columns_of_a_table_are_kept_and_its_own_cluster_column_gives_way(decar, sound_folder, tmp_path):
    paths = sorted(str(path.relative_to(tmp_path)) for path in sound_folder.rglob("*.wav"))
    pd.DataFrame({"path": paths, "cluster": "old", "site": "x"}).to_csv(tmp_path / "table.csv", index=False)
    assert decar("cluster", "table.csv", "-k", "3").code == 0
    table = pd.read_csv(tmp_path / "clusters/clusters.csv")
    assert sorted(table["cluster"].unique()) == [0, 1, 2]
    assert table["site"].tolist() == ["x"] * 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nothing"], "nothing does not exist"),
        (["sounds", "-k", "1"], "-k=1: not allowed"),
        (["sounds", "-k", "13"], "k=13 is larger than the number of clips (12)"),
        (["sounds", "-k", "3", "--clusterer", "pic"], "-k 3: pic finds their number itself"),
        (["sounds", "--max-points", "9", "--clusterer", "pic"], "--max-points 9: pic takes all segments"),
        (["sounds", "--max-points", "9", "--like", "c"], "--max-points 9: --like takes the clusters that there are"),
        (["sounds", "--segment", "five"], "--segment five: give a number"),
        (["sounds", "--segment", "-1"], "--segment=-1"),
        (["sounds", "--like", "nowhere"], "nowhere: not readable as clusters"),
        (["sounds", "--like", "no/where.npz", "--out", "sounds"], "no/where.npz: not readable as clusters"),
        (["sounds", "--like", "sounds"], "sounds: no clusters.npz in there"),
        (["sounds", "--workers", "0"], "--workers=0"),
    ],
)
def test_mistakes_get_one_line(decar, sound_folder, options, message):
    outcome = decar("cluster", *options)
    assert outcome.code == 2
    assert len(outcome.errors) == 1
    assert message in outcome.errors[0]


def test_clusters_of_another_encoder_are_refused(decar, sound_folder, tmp_path):
    assert decar("cluster", "sounds", "-k", "3", "--out", "known").code == 0
    outcome = decar("cluster", "sounds", "--like", "known", "--bundle", "random", "--out", "new")
    assert outcome.code == 2
    assert "the clusters were made with another encoder" in outcome.errors[0]
    assert not (tmp_path / "new" / "clusters.csv").exists()


def test_nothing_is_imported_because_a_file_says_so(decar, sound_folder, tmp_path):
    from decar.clustering import make_clusters

    vectors = np.random.default_rng(0).normal(size=(20, 8))
    facts = {"encoder": "0" * 64, "bundle": "torch:evil.network", "segment": "auto"}
    made, _ = make_clusters(vectors, np.arange(20), k=2, facts=facts)
    made.save(tmp_path / "sent.npz")
    (tmp_path / "evil.py").write_text("open('ran', 'w')")
    outcome = decar("cluster", "sounds", "--like", "sent.npz")
    assert outcome.code == 2
    assert "nothing is downloaded or imported because a file says so" in outcome.errors[0]
    assert not (tmp_path / "ran").exists()

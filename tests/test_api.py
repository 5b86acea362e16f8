"""Python in a few lines gives what the commands give."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import soundfile

import decar
from decar.cli import app
from decar.errors import ClusteringError, ConfigError, SearchError, TrainingError


def test_importing_decar_imports_no_torch():
    code = "import decar, sys; assert 'torch' not in sys.modules; assert {'train', 'cluster'} <= set(decar.__all__)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_embed_takes_folders_lists_and_encoders(sound_folder, small_encoder):
    made = decar.embed(sound_folder, progress=False)
    assert made.vectors.shape == (12, 1536 * 2)
    files = [sound_folder / path for path in made.table["path"][:3]]
    listed = decar.embed(files, decar.load_encoder(), progress=False)
    np.testing.assert_allclose(listed.vectors, made.vectors[:3], atol=1e-5)
    assert decar.embed(files, small_encoder, progress=False).vectors.shape == (3, small_encoder.dim)


def test_cluster_gives_the_table_of_the_command(sound_folder, tmp_path, monkeypatch):
    table, model = decar.cluster(sound_folder, k=3, progress=False)
    monkeypatch.chdir(tmp_path)
    app.main(["cluster", str(sound_folder), "-k", "3"])
    written = pd.read_csv(tmp_path / "clusters" / "clusters.csv")
    assert written["cluster"].tolist() == table["cluster"].tolist()
    np.testing.assert_allclose(written["novelty"], table["novelty"], atol=1e-3)
    for like in (model, tmp_path / "clusters", tmp_path / "clusters" / "clusters.npz"):
        again, _ = decar.cluster(sound_folder, like=like, progress=False)
        assert again["cluster"].tolist() == table["cluster"].tolist()


def test_clusters_of_another_encoder_are_refused(sound_folder, small_encoder):
    _, model = decar.cluster(sound_folder, k=3, progress=False)
    with pytest.raises(ClusteringError, match="another encoder"):
        decar.cluster(sound_folder, small_encoder, like=model, progress=False)


def test_train_gives_a_run_with_all_that_it_ends_with(sound_folder, tmp_path):
    options = [
        "debug=fast",
        "report=true",
        "loader.num_workers=0",
        "trainer=cpu",
        "k=3",
        f"cache_dir={tmp_path / 'cache'}",
    ]
    run = decar.train(sound_folder, *options, out=tmp_path / "my run")
    assert run.report.is_file()
    assert (
        run.clusters["path"].tolist() == decar.embed(sound_folder, run.encoder, progress=False).table["path"].tolist()
    )
    table, _ = decar.cluster(sound_folder, run.folder, like=run.folder, segment="none", progress=False)
    assert table["cluster"].tolist() == run.clusters["cluster"].tolist()
    with pytest.raises(TrainingError, match="status 2"):
        decar.train(tmp_path / "nowhere", *options, out=tmp_path / "other")


def test_a_recording_is_cut(tmp_path):
    wave = 0.1 * np.random.default_rng(0).normal(size=16_000 * 21)
    soundfile.write(tmp_path / "a.wav", wave, 16_000)
    assert decar.embed(tmp_path, segment="auto", progress=False).table["start"].tolist() == [0, 5, 10, 15]
    table, _ = decar.cluster(tmp_path, progress=False)
    assert table["duration"].tolist() == [5, 5, 5, 6]
    _, model = decar.cluster(tmp_path, segment=2, progress=False)
    again, _ = decar.cluster(tmp_path, like=model, progress=False)
    assert again["duration"].tolist() == [*[2] * 10, 1], "as the clusters were made, and as the command does"
    assert model.facts["segment"] == 2
    assert isinstance(model.facts["segment"], float), "as `decar cluster --like` expects it"
    with pytest.raises(ConfigError, match="like takes the clusters that there are"):
        decar.cluster(tmp_path, like=model, k=3, progress=False)
    with pytest.raises(ConfigError, match="k=3: pic finds the number of clusters itself"):
        decar.cluster(tmp_path, clusterer="pic", k=3, progress=False)


def test_search_finds_in_a_table_that_embed_wrote(sound_folder, small_encoder, tmp_path):
    made = decar.embed(sound_folder, out=tmp_path / "e.parquet", progress=False)
    cosine = made.vectors / np.linalg.norm(made.vectors, axis=1, keepdims=True)
    nearest = np.argsort(-(cosine[1:] @ cosine[0]), kind="stable")[:3] + 1
    first = made.table["path"][0]
    for sound in (first, sound_folder / first):  # a row of the table, and the same sound as a file
        found = decar.search(sound, tmp_path / "e.parquet", 4, root=sound_folder)
        assert found["rank"].tolist() == [0, 1, 2, 3, 4]
        expected = made.table["path"][nearest].tolist()
        assert [path for path in found["path"][1:] if path != first][:3] == expected
    with pytest.raises(SearchError, match="another encoder"):
        decar.search(sound_folder / first, tmp_path / "e.parquet", 3, small_encoder)
    decar.embed(sound_folder, small_encoder, out=tmp_path / "own.parquet", progress=False)
    elsewhere = tmp_path / "copy.wav"
    elsewhere.write_bytes((sound_folder / first).read_bytes())
    found = decar.search(elsewhere, tmp_path / "own.parquet", 1, small_encoder)
    assert found["path"].tolist()[1:] == [first]
    with pytest.raises(SearchError, match="does not say which bundle"):
        decar.search(elsewhere, tmp_path / "own.parquet", 1)


def test_search_stays_a_function_after_a_search():
    code = "import decar, decar.cli.bundles, decar.neighbours.query; assert callable(decar.search)"
    subprocess.run([sys.executable, "-c", code], check=True)

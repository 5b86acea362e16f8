"""Embeddings for other programs: what is in the files, and that the programs read them, where they are installed.

perch-hoplite, embedding-atlas and renumics-spotlight want other versions of pandas: three environments.
"""

import io
import sys
from datetime import datetime
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import soundfile

from decar.audio import Manifest
from decar.errors import ExportError
from decar.neighbours.index import EmbeddingTable
from decar.report.tools import Points, write_atlas, write_hoplite, write_projector, write_spotlight

FACTS = {"encoder": "abc", "bundle": "small", "sample_rate": 16_000, "window": 2.0}
N, D = 12, 6


@pytest.fixture
def points(tmp_path):
    """Three recordings of 8 s at two sites, four segments each; tones that rise from segment to segment."""
    rng, time = np.random.default_rng(0), np.arange(2 * 16_000) / 16_000
    names = ["NORTH_20240512_053000.wav", "NORTH_20240512_060000.wav", "deep/a\tb.wav"]
    for name in names:
        (tmp_path / "field" / name).parent.mkdir(parents=True, exist_ok=True)
        wave = np.concatenate([0.3 * np.sin(2 * np.pi * pitch * time) for pitch in (300, 600, 1200, 2400)])
        soundfile.write(tmp_path / "field" / name, wave, 16_000)
    table = pd.DataFrame({
        "path": np.repeat(names, 4), "start": np.tile([0.0, 2.0, 4.0, 6.0], 3), "duration": 2.0,
        "label": ["frog, rain", "-frog", "", "-"] * 3, "id": [f"own {i}" for i in range(N)], "nothing": "",
        "site": np.repeat(["north", "north", ""], 4),
        "recorded_at": [f"2024-05-12T05:30:{2 * i:02d}" for i in range(4)] * 2 + [""] * 4,
        "cluster": [0, 1, 2, -1] * 3, "novelty": np.linspace(0.5, 2, N),
    })  # fmt: skip
    return Points(Manifest(table, tmp_path / "field"), rng.normal(size=(N, D)).astype(np.float32), FACTS)


def test_an_embedding_that_is_not_finite_is_refused_by_name(points):
    vectors = points.vectors.copy()
    vectors[5, 3] = np.nan
    with pytest.raises(ExportError, match=r"NORTH_20240512_060000[.]wav: its embedding holds NaN"):
        Points(points.clips, vectors, FACTS)


def test_embedding_atlas_gets_places_words_and_sounds(points, tmp_path):
    (tmp_path / "field" / "NORTH_20240512_060000.wav").unlink()
    assert write_atlas(points, tmp_path / "atlas.parquet") == 4
    table = pd.read_parquet(tmp_path / "atlas.parquet")
    assert list(table) == [
        "id", "name", "audio", "x", "y", "path", "start", "duration", "label", "table_id", "site", "recorded_at",
        "cluster", "novelty",
    ]  # fmt: skip
    assert table["id"].tolist() == list(range(N))
    assert table["name"][1] == "NORTH_20240512_053000.wav · 0:02"
    assert table["cluster"].tolist() == ["cluster 0", "cluster 1", "cluster 2", "noise"] * 3
    assert table["label"].isna().tolist() == [False, False, True, False] * 3
    assert np.abs(table[["x", "y"]].to_numpy()).max() == pytest.approx(1)
    assert len(table[["x", "y"]].drop_duplicates()) == N
    assert table["audio"].isna().tolist() == [False] * 4 + [True] * 4 + [False] * 4
    for row, pitch in ((0, 300), (3, 2400)):
        wave, rate = soundfile.read(io.BytesIO(table["audio"][row]["bytes"]))
        assert len(wave) / rate == pytest.approx(2, abs=0.05)
        assert np.abs(np.fft.rfft(wave)).argmax() * rate / len(wave) == pytest.approx(pitch, abs=5)


def test_spotlight_gets_embeddings_files_and_windows(points, tmp_path):
    write_spotlight(points, tmp_path / "spot.parquet")
    table = pd.read_parquet(tmp_path / "spot.parquet")
    np.testing.assert_array_equal(np.stack(table["embedding"]), points.vectors)
    assert table["audio"].tolist() == [str(file) for file in points.clips.files]
    assert table["window"].map(list).tolist() == [[0, 2], [2, 4], [4, 6], [6, 8]] * 3
    assert len(EmbeddingTable.open(tmp_path / "spot.parquet")) == N  # decar search opens it as well
    whole = Points(Manifest(points.clips.table[["path"]], points.clips.root), points.vectors, FACTS)
    write_spotlight(whole, tmp_path / "whole.parquet")
    assert list(pd.read_parquet(tmp_path / "whole.parquet")) == ["id", "name", "audio", "path", "start", "embedding"]


def test_the_projector_gets_a_line_a_clip_whatever_is_in_the_names(points, tmp_path):
    from google.protobuf import text_format
    from tensorboard.plugins.projector.projector_plugin import ProjectorConfig, _read_tensor_tsv_file

    write_projector(points, tmp_path / "projector")
    config = text_format.Parse((tmp_path / "projector/projector_config.pbtxt").read_text(), ProjectorConfig())
    [files] = config.embeddings
    found = _read_tensor_tsv_file(str(tmp_path / "projector" / files.tensor_path))
    np.testing.assert_allclose(found, points.vectors, rtol=1e-6)
    head, *lines = (tmp_path / "projector" / files.metadata_path).read_text().split("\n")[:-1]
    assert head.split("\t")[:3] == ["name", "start", "duration"]
    assert len(lines) == N
    assert {len(line.split("\t")) for line in lines} == {len(head.split("\t"))}
    assert lines[8].startswith("deep/a\\tb.wav · 0:00\t0.0\t")


def test_a_table_of_names_alone_has_a_head_too(points, tmp_path):
    """Of one column there would be none; there are always two."""
    names = points.clips.table[["path"]].iloc[[0, 4]]
    write_projector(Points(Manifest(names, points.clips.root), points.vectors[:2], FACTS), tmp_path / "one")
    lines = (tmp_path / "one/metadata.tsv").read_text().splitlines()
    assert lines == ["name\tstart", "NORTH_20240512_053000.wav\t0.0", "NORTH_20240512_060000.wav\t0.0"]


class Recorder:
    """In place of the database: what is put into it."""

    def __init__(self, path):
        (path / "hoplite.sqlite").write_text("")
        self.calls, self.db = [], SimpleNamespace(close=lambda: None)

    def __getattr__(self, name):
        def note(*args, **kwargs):
            self.calls.append((name, args, kwargs))
            return sum(call[0] == name for call in self.calls)

        return note


@pytest.fixture
def made(monkeypatch):
    """What `write_hoplite` inserts, without the package."""
    from pathlib import Path

    found = []

    def create(db_path, usearch_cfg):
        found.append(Recorder(Path(db_path)))
        return found[-1]

    sqlite = SimpleNamespace(
        SQLiteUSearchDB=SimpleNamespace(create=create), get_default_usearch_config=lambda dim: {"embedding_dim": dim}
    )
    package, parts = ModuleType("perch_hoplite"), ModuleType("perch_hoplite.db")
    parts.sqlite_usearch_impl = sqlite
    parts.datatypes = SimpleNamespace(LabelType=SimpleNamespace(POSITIVE="yes", NEGATIVE="no"))
    ml = ModuleType("ml_collections")
    ml.config_dict = SimpleNamespace(ConfigDict=dict)
    for name, module in {"perch_hoplite": package, "perch_hoplite.db": parts, "ml_collections": ml}.items():
        monkeypatch.setitem(sys.modules, name, module)
    return found


def test_hoplite_gets_sites_recordings_windows_and_labels(points, tmp_path, made):
    assert write_hoplite(points, tmp_path / "hoplite") == 9
    assert (tmp_path / "hoplite/hoplite.sqlite").is_file()
    calls = {name: [call[1:] for call in made[0].calls if call[0] == name] for name, _, _ in made[0].calls}
    assert [kwargs for _, kwargs in calls["insert_deployment"]] == [
        {"name": "north", "project": "field"}, {"name": "deep", "project": "field"},
    ]  # fmt: skip
    assert [args for args, _ in calls["insert_recording"]] == [
        ("NORTH_20240512_053000.wav", datetime(2024, 5, 12, 5, 30), 1),
        ("NORTH_20240512_060000.wav", datetime(2024, 5, 12, 5, 30), 1),
        ("deep/a\tb.wav", None, 2),
    ]
    [((windows, vectors), _)] = calls["insert_windows_batch"]
    assert [window["recording_id"] for window in windows] == [1] * 4 + [2] * 4 + [3] * 4
    assert windows[3]["offsets"] == [6.0, 8.0]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    labels = [args[:4] for args, _ in calls["insert_annotation"]][:3]
    assert labels == [(1, [0.0, 2.0], "frog", "yes"), (1, [0.0, 2.0], "rain", "yes"), (1, [2.0, 4.0], "frog", "no")]
    about = {args[0]: args[1] for args, _ in calls["insert_metadata"]}
    assert about["audio_sources"]["audio_globs"][0]["base_path"] == str(tmp_path / "field")
    assert about["model_config"]["model_config"]["window_size_s"] == 2.0


def test_mistakes_of_hoplite_are_named(points, tmp_path, made, monkeypatch):
    with pytest.raises(ExportError, match="no column 'species'"):
        write_hoplite(points, tmp_path / "hoplite", "species")
    whole = Points(Manifest(points.clips.table[["path"]], points.clips.root), points.vectors, FACTS)
    with pytest.raises(ExportError, match="no durations"):
        write_hoplite(whole, tmp_path / "hoplite")
    monkeypatch.setattr(Recorder, "insert_recording", lambda *_: 1 / 0, raising=False)
    with pytest.raises(ZeroDivisionError):
        write_hoplite(points, tmp_path / "hoplite")
    assert not [file for file in tmp_path.iterdir() if "hoplite" in file.name]
    monkeypatch.setitem(sys.modules, "perch_hoplite.db", None)
    with pytest.raises(ExportError, match=r"pip install 'decar\[hoplite\]'"):
        write_hoplite(points, tmp_path / "hoplite")


def test_hoplite_itself_finds_the_neighbours_that_numpy_finds(points, tmp_path):
    config = pytest.importorskip("ml_collections").config_dict
    sqlite = pytest.importorskip("perch_hoplite.db.sqlite_usearch_impl")
    assert write_hoplite(points, tmp_path / "hoplite") == 9
    database = sqlite.SQLiteUSearchDB.create(db_path=str(tmp_path / "hoplite"), readonly=True)
    assert database.count_embeddings() == N
    assert {one.name: one.project for one in database.get_all_deployments()} == {"north": "field", "deep": "field"}
    times = [one.datetime for one in database.get_all_recordings()]
    assert times == [datetime(2024, 5, 12, 5, 30)] * 2 + [None]
    assert database.count_each_label() == {"frog": 6, "rain": 3}
    assert len(database.match_window_ids(annotations_filter=config.create(eq={"label": "rain"}))) == 3
    unit = points.vectors / np.linalg.norm(points.vectors, axis=1, keepdims=True)
    for approximate in (False, True):
        for row in range(N):
            best = database.search(unit[row].astype(np.float16), 5, approximate=approximate)
            order = [int(one.window_id) - 1 for one in sorted(best, key=lambda one: -one.sort_score)]
            assert order == np.argsort(-(unit @ unit[row]))[:5].tolist()
    globs = database.get_metadata("audio_sources").audio_globs
    assert globs[0]["base_path"] == str(tmp_path / "field")


def test_embedding_atlas_itself_loads_and_serves_it(points, tmp_path):
    cli = pytest.importorskip("embedding_atlas.cli")
    client = pytest.importorskip("fastapi.testclient")
    from embedding_atlas.data_source import DataSource
    from embedding_atlas.server import make_server

    write_atlas(points, tmp_path / "atlas.parquet")
    source = DataSource("test", cli.load_datasets([str(tmp_path / "atlas.parquet")]), {})
    app = client.TestClient(make_server(source, static_path=str(tmp_path), duckdb_uri="server"))
    sql = "SELECT count(DISTINCT cluster) AS n, min(octet_length(audio.bytes)) AS size FROM dataset"
    [row] = app.post("/data/query", json={"sql": sql, "type": "json"}).json()
    assert row["n"] == 4
    assert row["size"] > 1000


def test_spotlight_itself_knows_what_the_columns_are(points, tmp_path):
    store = pytest.importorskip("renumics.spotlight.data_store")
    from renumics.spotlight_plugins.core.pandas_data_source import PandasDataSource

    write_spotlight(points, tmp_path / "spot.parquet")
    found = store.DataStore(PandasDataSource(tmp_path / "spot.parquet"), {})
    kinds = {name: dtype.name for name, dtype in found.dtypes.items()}
    assert kinds["embedding"] == "Embedding"
    assert kinds["audio"] == "Audio"
    assert kinds["window"] == "Window"
    np.testing.assert_allclose(np.stack(found.get_converted_values("embedding")), points.vectors)
    assert found.get_waveform("audio", 0).shape[0] > 1000

"""`decar export` of embeddings, from what `decar cluster`, `decar embed` and a training leave."""

import numpy as np
import pandas as pd
import pytest
import yaml

from decar.cli.data import run_files
from decar.clustering import make_clusters
from decar.embedder.output import write_rows
from decar.models import save_bundle
from decar.report.final import cluster_store, with_places, write_clusters
from tests.conftest import make_encoder


@pytest.fixture
def clustered(sound_folder, tmp_path):
    """A folder as `decar cluster sounds --out clusters` leaves it, without the time that embedding takes."""
    names = sorted(str(file.relative_to(sound_folder)) for file in sound_folder.rglob("*.wav"))
    table = pd.DataFrame(
        {"path": names, "start": 0.0, "duration": 0.5, "label": [name.split("/")[0] for name in names]}
    )
    table["key"] = [f"00{i}" for i in range(len(names))]
    vectors = np.random.default_rng(0).normal(size=(len(names), 8)).astype(np.float32)
    model, placed = make_clusters(vectors, table["path"].to_numpy(), k=3, facts={"encoder": "abc"})
    facts = {"encoder": "abc", "bundle": "small", "root": str(sound_folder)}
    write_rows(tmp_path / "clusters/embeddings.parquet", table, vectors, facts)
    write_clusters(tmp_path / "clusters", table, placed, model)
    return tmp_path / "clusters"


@pytest.fixture
def run(sound_folder, tmp_path):
    """What a training leaves of its final embedding, without the training."""
    clips = {"_target_": "decar.audio.Manifest.from_folder", "root": str(sound_folder)}
    config = {"seed": 0, "data": {"manifest": clips, "segment": None}, "frontend": {"_target_": "decar.audio.FrontEnd"}}
    folder, encoder = tmp_path / "run", make_encoder("conv", seed=0, widths=[4, 4], hidden=8, pool="avg")
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    save_bundle(encoder, folder / "encoder.safetensors")
    store = run_files(folder).store
    _, model, placed = cluster_store(encoder, store, seed=0, device="cpu", progress=False)
    write_clusters(folder, with_places(store), placed, model)
    return folder


def test_clusters_go_with_their_labels_and_a_line_says_how_they_are_opened(decar, clustered, tmp_path):
    outcome = decar("export", "clusters", "--to", "spotlight", "--out", "my spot.parquet")
    assert outcome.code == 0, outcome.err
    assert "my spot.parquet: 12 clips, embeddings of 8 numbers" in outcome.out
    assert "open it: spotlight 'my spot.parquet' --dtype embedding=Embedding --dtype audio=Audio" in outcome.out
    table = pd.read_parquet(tmp_path / "my spot.parquet")
    known = pd.read_csv(clustered / "clusters.csv")
    assert table["cluster"].tolist() == [f"cluster {number}" for number in known["cluster"]]
    assert table["novelty"].tolist() == known["novelty"].tolist()
    assert table["key"].tolist() == [f"00{i}" for i in range(12)]
    assert table["audio"][0] == str(tmp_path / "sounds" / known["path"][0])
    outcome = decar("export", "clusters", "--to", "embedding-atlas", "--out", "atlas.parquet")
    assert "12 of them with sound\nopen it: embedding-atlas atlas.parquet --x x --y y" in outcome.out
    outcome = decar("export", "clusters", "--to", "projector", "--out", "projector")
    assert "open it: tensorboard --logdir projector" in outcome.out


def test_a_table_of_embeddings_alone_has_no_clusters(decar, clustered, tmp_path):
    known, table = pd.read_parquet(clustered / "embeddings.parquet"), str(tmp_path / "e.parquet")
    known.to_parquet(table)  # another program's, which does not say where its paths start from
    outcome = decar("export", table, "--to", "spotlight", "--out", "s.parquet")
    assert "its paths are relative: pass --root" in outcome.err
    assert decar("export", table, "--to", "spotlight", "--out", "s.parquet", "--root", "sounds").code == 0
    assert "cluster" not in pd.read_parquet(tmp_path / "s.parquet")
    assert decar("export", table, "--to", "projector", "--out", "p").code == 0  # which plays nothing


def test_a_run_is_embedded_again_as_for_its_page(run, decar, tmp_path):
    outcome = decar("export", "run", "--to", "spotlight", "--out", "spot.parquet")
    assert outcome.code == 0, outcome.err
    table, known = pd.read_parquet(tmp_path / "spot.parquet"), pd.read_csv(run / "clusters.csv")
    assert table["path"].tolist() == known["path"].tolist()
    assert table["cluster"].tolist() == [f"cluster {number}" for number in known["cluster"]]
    assert decar("embed", "sounds", "--bundle", "run", "--out", "e.parquet").code == 0
    embedded = pd.read_parquet(tmp_path / "e.parquet").set_index("path")["embedding"]
    np.testing.assert_allclose(np.stack(table["embedding"]), np.stack(embedded[table["path"]]), atol=1e-5)
    (tmp_path / "sounds").rename(tmp_path / "moved")
    outcome = decar("export", "run", "--to", "projector", "--out", "p")
    assert outcome.code == 2
    assert "decar cluster SOUNDS --like run --out DIR" in outcome.err


def test_what_contradicts_itself_is_refused(decar, clustered, tmp_path):
    def error(*words):
        outcome = decar("export", *words)
        assert outcome.code == 2
        assert len(outcome.errors) == 1
        return outcome.err

    to = ("--to", "projector", "--out", "p")
    table = pd.read_csv(clustered / "clusters.csv", dtype=str)
    table.iloc[::-1].to_csv(clustered / "clusters.csv", index=False)
    assert "its 12 rows are not the 12 embedded clips in their order" in error("clusters", *to)
    table.to_csv(clustered / "clusters.csv", index=False)
    (tmp_path / "sounds").rename(tmp_path / "moved")
    assert "nor does any other of the sounds: pass --root" in error(
        "clusters", "--to", "spotlight", "--out", "s.parquet"
    )
    assert decar("export", "clusters", "--to", "spotlight", "--out", "s.parquet", "--root", "moved").code == 0
    assert "is there already" in error("clusters", "--to", "spotlight", "--out", "s.parquet")
    assert "has to end in .parquet" in error("clusters", "--to", "spotlight", "--out", "s.csv")
    assert "--root does not go with --to onnx" in error("run", "--to", "onnx", "--out", "x.onnx", "--root", "moved")
    assert "--column does not go with" in error("clusters", *to, "--column", "key")
    assert "holds neither embeddings.parquet nor a run" in error("moved", *to)
    assert "does not exist" in error("nowhere", *to)
    known = pd.read_parquet(clustered / "embeddings.parquet")
    vectors = np.stack(known.pop("embedding"))
    write_rows(clustered / "embeddings.parquet", known, vectors, {"encoder": "other"})
    assert "made with another encoder" in error("clusters", *to)
    assert not (tmp_path / "p").exists()

"""A user's own label source: one class and one YAML, both outside the package."""

import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from decar.clustering import KMeans
from decar.pretrain import EpochLabels, Situation, Vectors
from tests.pretrain.test_collectives import together

PAGE = (Path(__file__).parents[2] / "docs" / "labels.md").read_text()
CLASS, YAML = (re.search(rf"```{kind}\n(.*?)```", PAGE, re.S)[1] for kind in ("python", "yaml"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "mymodule.py").write_text(CLASS)
    (tmp_path / "conf" / "labels").mkdir(parents=True)
    (tmp_path / "conf" / "labels" / "mine.yaml").write_text(YAML)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mymodule", raising=False)
    return tmp_path


def test_a_class_and_a_yaml_are_a_label_source(folder, train, sound_folder):
    done = train(
        "--config-dir", str(folder / "conf"), "labels=mine", "debug=fast", "trainer=cpu", "trainer.max_epochs=3", "k=3",
        "sampler.every_n_steps=2", "loader.batch_size=8", "data=folder", f"data.root={sound_folder}",
        "pretrain.features=bank", f"hydra.run.dir={folder}/run",
    )  # fmt: skip
    assert done.code == 0, done.err
    table = pd.read_parquet(folder / "run" / "clusters.parquet")
    first, second, third = (part["pseudo_label"].to_numpy() for _, part in table.groupby("epoch"))
    assert len(np.unique(first)) == 3
    assert np.array_equal(first, second), "kept"
    assert not np.array_equal(second, third), "clustered again"


def test_it_clusters_on_rank_0_and_all_ranks_get_the_labels(folder):
    from mymodule import MyLabels

    source = MyLabels(KMeans(k=3))
    features = np.random.default_rng(0).standard_normal((30, 4)).astype(np.float32)
    situation = Situation(None, epoch=4, seed=1)

    def play(rank, size):
        mine = np.arange(rank, 30, size)
        return source.assign(Vectors(features[mine], mine), situation)

    expected = KMeans(k=3, seed=5).fit_predict(features).labels[:, None]
    for found in together(play, folder):
        assert isinstance(found, EpochLabels), found
        assert np.array_equal(found.labels, expected)

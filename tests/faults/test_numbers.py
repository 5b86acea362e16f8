"""Odd clusters and odd numbers: training goes on, or stops in one line that names the clips.

Elsewhere: a loss that is NaN, in tests/pretrain/test_callbacks.py; fewer distinct points than k, in the contract of the
clusterers, tests/clustering/test_base.py.
"""

import logging

import numpy as np
import pytest
import torch

from decar.clustering import PIC, Assignment, KMeans
from decar.errors import ClusteringError
from decar.pretrain import EmbeddingHealth, NetworkLabels, Situation, Vectors
from tests.pretrain.helpers import build, fit

LENGTHS = [20, 40, 33, 64, 100, 50, 31, 32] * 5


class Odd:
    """Finds what it was told to find."""

    def __init__(self, labels, n):
        self.labels, self.n, self.seed = np.asarray(labels, np.int64), n, 0

    def with_seed(self, seed):
        return self

    def fit_predict(self, features):
        return Assignment(self.labels, self.n, 0.0)


ODD = {
    "all in one of many": (np.zeros(40), 8),
    "one cluster": (np.zeros(40), 1),
    "a cluster each": (np.arange(40), 40),
    "a cluster of one": (np.r_[1, np.zeros(39)], 2),
    "clusters left empty": (np.arange(40) % 2 * 6, 7),
}


@pytest.mark.parametrize("name", ODD)
def test_training_goes_on_with_odd_clusters(make_store, tmp_path, name):
    labels, n = ODD[name]
    model, data = build(make_store(LENGTHS), source=NetworkLabels([Odd(labels, n)], dim=4))
    trainer, recorder = fit(model, data, tmp_path, epochs=2)
    assert trainer.global_step == 2 * data.steps_per_epoch
    assert np.isfinite(recorder.losses).all()
    assert model.heads.sizes == [n]
    drawn = np.bincount(labels.astype(int)[torch.cat([index for _, index, _ in recorder.pairs]).numpy()], minlength=n)
    there = drawn[np.unique(labels.astype(int))]
    assert there.max() - there.min() <= 2, "drawn evenly over the clusters that have clips, in each of two epochs"


@pytest.mark.parametrize("clusterer", [KMeans(k=4), PIC(n_neighbors=5)], ids=["kmeans", "pic"])
@pytest.mark.parametrize("n_kinds", [1, 2])
def test_constant_vectors_are_clustered(make_store, clusterer, n_kinds):
    features = np.repeat(np.eye(6, dtype=np.float32)[:n_kinds], 40 // n_kinds, axis=0)
    z = Vectors(features, np.arange(40))
    found = NetworkLabels([clusterer], dim=4).assign(z, Situation(make_store(LENGTHS), 0, 0))
    assert found.labels.shape == (40, 1)
    assert found.labels.max() < found.sizes[0]
    assert all(len(set(found.labels[features[:, kind] == 1, 0])) == 1 for kind in range(n_kinds)) or n_kinds == 1
    assert found.health["effective_rank"] <= n_kinds


def test_vectors_that_are_no_numbers_name_their_clips(make_store, tmp_path):
    store = make_store(LENGTHS)
    mel = np.array(store.mel)
    mel[store.offsets[7] : store.offsets[7] + 5] = np.nan
    broken = type(store)(**{**store.__dict__, "mel": mel})
    model, data = build(broken)
    path = store.manifest.table["path"][7]
    with pytest.raises(ClusteringError, match=f"vectors of {path} hold NaN or Inf: look at these clips"):
        fit(model, data, tmp_path, epochs=1)


@pytest.mark.parametrize(("labels", "n", "alarm"), [(np.r_[1, np.zeros(39)], 8, True), (np.arange(40) % 8, 8, False)])
def test_collapse_is_told_once(make_store, tmp_path, caplog, labels, n, alarm):
    model, data = build(make_store(LENGTHS), source=NetworkLabels([Odd(labels, n)], dim=4))
    with caplog.at_level(logging.WARNING, "decar"):
        fit(model, data, tmp_path, epochs=3, callbacks=[EmbeddingHealth()])
    told = [record.message for record in caplog.records if "collapse" in record.message]
    assert len(told) == int(alarm)
    assert not alarm or "most clips are in one cluster" in told[0]


def test_a_collapsed_embedding_is_told(make_store, tmp_path, caplog):
    model, data = build(make_store(LENGTHS))
    health = EmbeddingHealth(low_rank=100.0)  # no embedding is a hundred times richer
    with caplog.at_level(logging.WARNING, "decar"):
        fit(model, data, tmp_path, epochs=1, callbacks=[health])
    assert any("effective rank" in record.message and "collapse" in record.message for record in caplog.records)

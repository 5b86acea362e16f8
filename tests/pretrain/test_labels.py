import numpy as np
import pytest

from decar.clustering import Assignment, KMeans, nmi, prepare
from decar.pretrain import NetworkLabels


class Spy:
    """Writes down what it is asked to cluster, and with which seed."""

    def __init__(self, seed=0, calls=None):
        self.seed, self.calls = seed, [] if calls is None else calls

    def with_seed(self, seed):
        return Spy(seed, self.calls)

    def fit_predict(self, features):
        self.calls.append((self.seed, features))
        return Assignment(np.arange(len(features)) % 3, 3, 0.0)


@pytest.fixture
def features():
    return np.random.default_rng(0).normal(size=(60, 12)).astype(np.float32) * np.arange(1, 13, dtype=np.float32)


def test_what_is_clustered_is_whitened_reduced_and_of_length_one(features):
    spy = Spy()
    NetworkLabels([spy], dim=5).assign(features, epoch=0, seed=0)
    np.testing.assert_allclose(spy.calls[0][1], prepare(features, 5), rtol=1e-6)
    assert spy.calls[0][1].shape == (60, 5)


def test_every_epoch_and_every_head_has_a_seed_of_its_own(features):
    spy = Spy()
    source = NetworkLabels([spy, spy], dim=5)
    for seed in (0, 1):
        for epoch in (0, 1):
            source.assign(features, epoch=epoch, seed=seed)
    seeds = [seed for seed, _ in spy.calls]
    assert len(set(seeds)) == 8
    source.assign(features, epoch=1, seed=1)
    assert [seed for seed, _ in spy.calls][-2:] == seeds[-2:]


def test_one_column_and_one_size_a_clusterer_and_nmi_to_the_assignment_before(features):
    source = NetworkLabels([KMeans(k=4), KMeans(k=7)], dim=5)
    first = source.assign(features, epoch=0, seed=0)
    second = source.assign(features, epoch=1, seed=0, previous=first)
    assert first.labels.shape == (60, 2)
    assert first.sizes == [4, 7]
    assert (first.epoch, second.epoch) == (0, 1)
    assert first.health["nmi"] == 0.0
    expected = np.mean([nmi(first.labels[:, h], second.labels[:, h]) for h in (0, 1)])
    assert second.health["nmi"] == pytest.approx(expected)
    assert 0 < second.health["nmi"] < 1
    assert first.health["n_clusters"] == pytest.approx(np.mean([len(np.unique(c)) for c in first.labels.T]))

import numpy as np
import pytest

from decar.audio.descriptors import describe
from decar.clustering import Assignment, KMeans, Whitening, affordable_dim, l2_normalize, nmi, prepare, whiten
from decar.errors import ConfigError
from decar.pretrain import BothLabels, DescriptorLabels, NetworkLabels, Situation, Vectors
from decar.pretrain.labels import FittedLabels
from decar.pretrain.sampler import Stream, derive_seed


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


def situation(features, epoch=0, seed=0, previous=None, store=None):
    """The arguments of `assign`."""
    return Vectors(features, np.arange(len(features))), Situation(store, epoch, seed, previous)


def test_what_is_clustered_is_whitened_reduced_and_of_length_one(features):
    spy = Spy()
    NetworkLabels([spy], dim=4).assign(*situation(features))
    np.testing.assert_allclose(spy.calls[0][1], prepare(features, 4), rtol=1e-6)
    assert spy.calls[0][1].shape == (60, 4)


def test_every_epoch_and_every_head_has_a_seed_of_its_own(features):
    spy = Spy()
    source = NetworkLabels([spy, spy], dim=5)
    for seed in (0, 1):
        for epoch in (0, 1):
            source.assign(*situation(features, epoch, seed))
    seeds = [seed for seed, _ in spy.calls]
    assert len(set(seeds)) == 8
    source.assign(*situation(features, 1, 1))
    assert [seed for seed, _ in spy.calls][-2:] == seeds[-2:]


def test_one_column_and_one_size_a_clusterer_and_nmi_to_the_assignment_before(features):
    source = NetworkLabels([KMeans(k=4), KMeans(k=7)], dim=5)
    first = source.assign(*situation(features))
    second = source.assign(*situation(features, 1, previous=first))
    assert first.labels.shape == (60, 2)
    assert first.sizes == [4, 7]
    assert (first.epoch, second.epoch) == (0, 1)
    assert "nmi" not in first.health
    expected = np.mean([nmi(first.labels[:, h], second.labels[:, h]) for h in (0, 1)])
    assert second.health["nmi"] == pytest.approx(expected)
    assert 0 < second.health["nmi"] < 1
    assert first.health["n_clusters"] == pytest.approx(np.mean([len(np.unique(c)) for c in first.labels.T]))
    assert (first.kept, second.kept) == (0, 0)


def test_fewer_dimensions_than_asked_for_are_reported_once(features, caplog):
    spy = Spy()
    source = NetworkLabels([spy], dim=64)
    first = source.assign(*situation(features[:45]))
    source.assign(*situation(features[:45], 1, previous=first))
    assert [clustered.shape for _, clustered in spy.calls] == [(45, 4), (45, 4)]
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "whitened to 4 dimensions, not dim=64, since there are only 45 clips (dim=64 needs 1920)" in warning
    caplog.clear()
    NetworkLabels([spy], dim=4).assign(*situation(features[:45]))
    assert not caplog.records


def test_a_sample_is_whitened_by_the_rule_of_its_size(features):
    fitted = FittedLabels.fit(features[:45], [KMeans(k=4)], 64)
    assert fitted.whitening.projection.shape == (12, affordable_dim(45, 64)) == (12, 4)
    np.testing.assert_array_equal(fitted(features[:45])[:, 0], KMeans(k=4).fit_predict(prepare(features[:45])).labels)


NAMES = ("spectrum", "envelope")


def test_descriptors_are_clustered_once_each_by_itself_without_a_pass_through_the_network(make_store):
    store = make_store([40] * 60)
    spy = Spy()
    source = DescriptorLabels(spy, NAMES, dim=5)
    assert not any(map(source.needs_vectors, range(3)))
    first = source.assign(None, Situation(store, epoch=0, seed=0))
    described = describe(store, NAMES, progress=False)
    for (_, clustered), name in zip(spy.calls, NAMES, strict=True):
        np.testing.assert_allclose(clustered, whiten(described[name], 5), rtol=1e-5)
    assert first.labels.shape == (60, 2)
    assert len({seed for seed, _ in spy.calls}) == 2
    second = source.assign(None, Situation(store, epoch=1, seed=0, previous=first))
    assert len(spy.calls) == 2
    np.testing.assert_array_equal(second.labels, first.labels)
    assert (first.kept, second.kept, second.epoch) == (0, 2, 1)
    assert "nmi" not in first.health | second.health, "the second was not clustered"


def test_the_networks_clusters_join_and_only_they_are_renewed(make_store, features):
    store = make_store([40] * 60)
    source = BothLabels(
        DescriptorLabels(KMeans(k=3), NAMES, dim=5), NetworkLabels([KMeans(k=5)], dim=5), network_from=1
    )
    assert list(map(source.needs_vectors, range(3))) == [False, True, True]
    before = source.assign(None, Situation(store, epoch=0, seed=0))
    joined = source.assign(*situation(features, 1, previous=before, store=store))
    later = source.assign(*situation(features + 0.5 * features[::-1], 2, previous=joined, store=store))
    assert [labels.sizes for labels in (before, joined, later)] == [[3, 3], [3, 3, 5], [3, 3, 5]]
    assert [labels.kept for labels in (before, joined, later)] == [0, 2, 2]
    for labels in (joined, later):
        np.testing.assert_array_equal(labels.labels[:, :2], before.labels)
    kept = source.first.assign(*situation(features, 1, previous=before, store=store))
    assert "nmi" not in before.health | kept.health | joined.health, "none had a clustering of its kind before it"
    assert later.health["nmi"] == pytest.approx(nmi(joined.labels[:, 2], later.labels[:, 2]))
    assert 0 < later.health["nmi"] < 1
    own = NetworkLabels([KMeans(k=5)], dim=5).assign(*situation(features, 1))
    np.testing.assert_array_equal(joined.labels[:, 2], own.labels[:, 0])


def test_no_descriptor_at_all_is_refused():
    with pytest.raises(ConfigError, match=r"labels\.descriptors"):
        DescriptorLabels(KMeans(k=3), ())


def test_centres_of_a_sample_label_each_share_by_itself(make_store):
    """The whole in one place, by hand: whiten and cluster the sample, label all."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((50, 6)).astype(np.float32)
    clusterers = [KMeans(k=3, max_points=20), KMeans(k=5, max_points=20)]
    gathered, labelled = [], []

    class Spy(Vectors):
        def gather(self, clips=None):
            gathered.append(clips)
            return super().gather(clips)

        def map(self, function):
            def in_two(rows):
                labelled.append(len(rows))
                return np.concatenate([function(rows[:17]), function(rows[17:])])

            return super().map(in_two)

    shuffled = rng.permutation(50)  # the order in which the ranks embed
    z = Spy(features[shuffled], shuffled)
    assert NetworkLabels(clusterers).needs_vectors(2)
    found = NetworkLabels(clusterers, dim=4).assign(z, Situation(make_store([40] * 50), epoch=2, seed=1))
    assert (len(gathered), labelled) == (1, [50]), "only the sample's vectors are gathered"
    sample = gathered[0]
    assert len(sample) == 20
    whitening = Whitening.fit(features[sample], 4)
    for h, clusterer in enumerate(clusterers):
        seeded = clusterer.with_seed(derive_seed(Stream.CLUSTERS, 1, 2, h) % 2**31)
        centres = seeded.fit(l2_normalize(whitening(features[sample]))).points
        squared = ((l2_normalize(whitening(features))[:, None] - centres) ** 2).sum(axis=2)
        np.testing.assert_array_equal(found.labels[:, h], squared.argmin(axis=1))
    assert found.sizes == [3, 5]


def test_a_rank_without_vectors_labels_none():
    """Of a bank rank 0 has all of them."""
    points = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    fitted = FittedLabels.fit(points, [KMeans(k=3), KMeans(k=2)], dim=4)
    assert fitted(points).shape == (60, 2)
    assert (fitted(points[:0]).shape, fitted(points[:0]).dtype) == ((0, 2), np.int64)

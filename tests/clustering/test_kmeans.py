"""K-Means: what is not in the contract (test_base.py)."""

import sys

import numpy as np
import pytest

from decar.clustering import KMeans, nmi
from decar.errors import ClusteringError
from tests.clustering.test_base import blobs, noise


def test_k_equal_to_n_gives_each_point_its_own_cluster() -> None:
    found = KMeans(k=30).fit_predict(noise(30))
    assert sorted(found.labels) == list(range(30))


def test_n_clusters_is_k_even_when_clusters_stay_empty() -> None:
    found = KMeans(k=8).fit_predict(np.repeat(noise(2), 20, axis=0))
    assert found.n_clusters == 8
    assert len(np.unique(found.labels)) == 2


def test_the_seed_matters() -> None:
    assert (
        nmi(KMeans(k=20, seed=0).fit_predict(noise()).labels, KMeans(k=20, seed=1).fit_predict(noise()).labels) < 0.99
    )


def test_all_points_are_used_however_many_a_cluster_has() -> None:
    """faiss would train on 256 points a cluster; then the centre of all points could not be their mean."""
    points = noise(5000, 2)
    found = KMeans(k=1).fit_predict(points)
    assert abs(found.objective - float(points.var(axis=0).sum())) < 1e-5


def test_labels_are_those_of_a_converged_lloyd_iteration() -> None:
    points, kind = blobs()
    found = KMeans(k=4, n_iter=50, seed=2).fit_predict(points)
    centres = np.stack([points[found.labels == label].mean(axis=0) for label in range(4)])
    nearest = ((points[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
    np.testing.assert_array_equal(found.labels, nearest)
    assert nmi(found.labels, kind) > 0.7  # random first points may share a blob


def test_centres_of_a_sample_and_labels_of_all() -> None:
    points, _ = blobs()
    clusterer = KMeans(k=4, seed=3, max_points=len(points) // 2)
    sample = clusterer.sample(len(points))
    assert sample is not None
    assert len(np.unique(sample)) == len(points) // 2
    found = clusterer.fit_predict(points)
    centres = KMeans(k=4, seed=3).fit(points[sample]).points
    squared = ((points[:, None] - centres) ** 2).sum(axis=2)
    np.testing.assert_array_equal(found.labels, squared.argmin(axis=1))
    assert abs(found.objective - float(squared.min(axis=1).mean())) < 1e-4 * found.objective


def test_a_sample_as_large_as_the_set_is_the_set() -> None:
    points = noise(300)
    np.testing.assert_array_equal(
        KMeans(k=5, max_points=300).fit_predict(points).labels, KMeans(k=5).fit_predict(points).labels
    )


@pytest.mark.parametrize("seed", range(5))
def test_of_several_starts_the_one_with_the_lowest_objective_is_kept(seed: int) -> None:
    """faiss seeds start i with seed + 1 + i · 15,486,557, so that each start can be made alone."""
    points = noise(200, 4)
    starts = [KMeans(k=8, seed=seed + i * 15_486_557).fit_predict(points) for i in range(4)]
    best = min(starts, key=lambda found: found.objective)
    assert len({found.objective for found in starts}) > 1
    np.testing.assert_array_equal(KMeans(k=8, seed=seed, n_init=4).fit_predict(points).labels, best.labels)


def test_auto_starts_ten_times_on_small_sets_only() -> None:
    small, large = noise(1_000, 4), noise(1_001, 4)
    for points, n_init in ((small, 10), (large, 1)):
        expected = KMeans(k=20, n_init=n_init).fit_predict(points).labels
        np.testing.assert_array_equal(KMeans(k=20, n_init="auto").fit_predict(points).labels, expected)
    assert KMeans(k=20, n_init="auto").fit(small).points.tobytes() != KMeans(k=20).fit(small).points.tobytes()


class TestSuperkmeans:
    """What it is taken for: the same algorithm as faiss', and the same centres whenever it is called."""

    def test_labels_are_those_of_a_converged_lloyd_iteration(self) -> None:
        points, kind = blobs()
        found = KMeans(k=4, n_iter=50, seed=2, superkmeans=True).fit_predict(points)
        centres = np.stack([points[found.labels == label].mean(axis=0) for label in range(4)])
        nearest = ((points[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
        np.testing.assert_array_equal(found.labels, nearest)
        assert nmi(found.labels, kind) > 0.7

    @pytest.mark.parametrize(("n", "k"), [(5000, 1), (300, 300), (4000, 50)])
    def test_all_points_are_used_and_the_objective_is_that_of_faiss(self, n: int, k: int) -> None:
        points = noise(n, 40)
        by_faiss, ours = (KMeans(k=k, seed=1, superkmeans=which).fit_predict(points) for which in (False, True))
        assert ours.objective == pytest.approx(by_faiss.objective, rel=0.02, abs=1e-4)
        assert ours.n_clusters == k
        if k == 1:
            assert abs(ours.objective - float(points.var(axis=0).sum())) < 1e-4

    @pytest.mark.parametrize("n_threads", [1, 2, 3, None])
    def test_the_number_of_threads_changes_no_bit(self, n_threads: int | None) -> None:
        points = noise(6000, 64)
        one = KMeans(k=60, seed=5, n_threads=1, superkmeans=True).fit(points).points
        np.testing.assert_array_equal(
            KMeans(k=60, seed=5, n_threads=n_threads, superkmeans=True).fit(points).points, one
        )

    def test_the_best_start_is_kept(self) -> None:
        points, _ = blobs()
        objectives = [KMeans(k=4, seed=seed, superkmeans=True).fit_predict(points).objective for seed in range(7, 12)]
        assert KMeans(k=4, seed=7, n_init=5, superkmeans=True).fit_predict(points).objective == min(objectives)
        assert len(set(objectives)) > 1

    def test_points_are_left_as_they_are_and_clusters_may_stay_empty(self) -> None:
        points = np.repeat(noise(2), 20, axis=0)
        before = points.copy()
        found = KMeans(k=8, superkmeans=True).fit_predict(points)
        assert (found.n_clusters, len(np.unique(found.labels))) == (8, 2)
        np.testing.assert_array_equal(points, before)

    def test_what_cannot_be_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ClusteringError, match="superkmeans=true runs on the CPU"):
            KMeans(k=2, gpu=True, superkmeans=True).fit_predict(noise(20))
        monkeypatch.setitem(sys.modules, "superkmeans", None)
        with pytest.raises(ClusteringError, match=r"pip install 'decar\[superkmeans\]', or leave it out"):
            KMeans(k=2, superkmeans=True).fit_predict(noise(20))

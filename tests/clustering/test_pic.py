"""PIC against a plain reference: dense matrices and loops over points."""

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from decar.clustering import PIC, l2_normalize, nmi
from decar.clustering.nearest import nearest_neighbours
from decar.clustering.pic import affinity, climb, median_distance, merge_singletons, power_iteration
from tests.clustering.test_base import noise
from tests.clustering.test_nearest import brute_force

F = np.float32


def reference(points: np.ndarray, n: int, sigma: float, alpha: float, n_iter: int) -> list[int]:
    """The released algorithm in loops, in float64. Sums run in column order, as the real ones: the last bit decides."""
    size = len(points)
    neighbours, squared = exact_neighbours(points, n)
    a = np.zeros((size, size))
    for i in range(size):
        for j, d2 in zip(neighbours[i], squared[i], strict=True):
            a[i, j] = np.exp(-float(F(d2)) / sigma**2)
    w = a + a.T
    rows = [[(j, w[i, j]) for j in np.flatnonzero(w[i])] for i in range(size)]
    v = np.full(size, 1 / size)
    for _ in range(n_iter):
        new = np.zeros(size)
        for i, row in enumerate(rows):
            for j, weight in row:
                new[i] += weight * v[j]
        new = alpha * new + (1 - alpha) / size
        v = new / new.sum()
    return reference_merge(reference_climb(w, v), neighbours)


def exact_neighbours(points: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Ours, held against brute force; where several are equally far (duplicates), more than one graph is right.

    The reference takes the same float32 distances: at the published sigma their last bit decides.
    """
    neighbours, squared = brute_force(points, n)
    ours, ours_squared = nearest_neighbours(points, n)
    np.testing.assert_allclose(ours_squared, squared, rtol=1e-5, atol=1e-12)
    distances = brute_force(points, min(n + 1, len(points) - 1))[1]
    if (np.diff(distances, axis=1) > 1e-6).all():
        np.testing.assert_array_equal(ours, neighbours)
    return ours, ours_squared


def reference_climb(w: np.ndarray, v: np.ndarray) -> list[int]:
    up = list(range(len(v)))
    for i in range(len(v)):
        best = 0.0
        for j in np.flatnonzero(w[i]):
            gain = w[i, j] * (v[j] - v[i])
            if gain > best:
                best, up[i] = gain, j
    peaks = []
    for i in range(len(v)):
        while up[i] != i:
            i = up[i]
        peaks.append(i)
    return peaks


def reference_merge(labels: list[int], neighbours: np.ndarray) -> list[int]:
    merged = list(labels)
    for i, label in enumerate(labels):
        if labels.count(label) == 1:
            for j in neighbours[i]:
                if labels.count(labels[j]) > 1:
                    merged[i] = labels[j]
                    break
    return merged


def assert_same_clusters(found: np.ndarray, expected: list[int]) -> None:
    pairs = set(zip(found.tolist(), expected, strict=True))
    assert len(pairs) == len(set(found.tolist())) == len(set(expected))


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(8, 60),
    n=st.integers(1, 6),
    sigma=st.sampled_from([0.2, 0.5, 1.0, 3.0]),
    alpha=st.sampled_from([0.001, 0.05, 0.5]),
    copies=st.booleans(),
)
def test_labels_equal_the_reference(seed: int, size: int, n: int, sigma: float, alpha: float, copies: bool) -> None:
    # on a grid of 1/64, squared distances are exact in float32 and float64 alike
    points = np.round(np.random.default_rng(seed).normal(size=(size, 3)) * 64).astype(F) / 64
    if copies:
        points = np.concatenate([points, points[: size // 3]])
    found = PIC(n_neighbors=n, sigma=sigma, alpha=alpha, n_iter=20).fit_predict(points)
    assert_same_clusters(found.labels, reference(points, n, sigma, alpha, 20))


@pytest.mark.parametrize("seed", range(3))
def test_labels_equal_the_reference_on_unit_vectors_with_the_published_options(seed: int) -> None:
    points = l2_normalize(np.repeat(noise(12, 6, seed), 10, axis=0) + 0.15 * noise(120, 6, seed + 100))
    found = PIC(n_iter=60).fit_predict(points)
    assert 2 < found.n_clusters < 60
    assert_same_clusters(found.labels, reference(points, 5, 0.2, 0.001, 60))


def near_ties(seed: int) -> np.ndarray:
    """Unit vectors on a coarse grid, some of them copies, some moved by a few units in the last place."""
    rng = np.random.default_rng(seed)
    points = np.repeat(np.round(4 * noise(14, 5, seed)) / 4 + 0.125, 3, axis=0)
    points[1::3] *= 1 + rng.integers(-3, 4, (14, 1)) * 2.0**-22
    return l2_normalize(points)


def clusters_of(seed: int) -> np.ndarray:
    return l2_normalize(np.repeat(noise(6, 12, seed), 8, axis=0) + 0.1 * noise(48, 12, seed + 1000))


KINDS = {"noise": lambda seed: l2_normalize(noise(45, 24, seed)), "blobs": clusters_of, "near ties": near_ties}


@pytest.mark.parametrize("kind", KINDS)
def test_labels_equal_the_reference_with_the_published_options(kind: str) -> None:
    for seed in range(67):  # 201 graphs in all
        points = KINDS[kind](seed)
        assert_same_clusters(PIC(n_iter=40).fit_predict(points).labels, reference(points, 5, 0.2, 0.001, 40))


@pytest.mark.parametrize(("seed", "maxima", "clusters"), [(0, 45, 44), (1, 48, 46), (2, 51, 50)])
def test_random_unit_vectors_have_the_local_maxima_of_the_released_code(seed: int, maxima: int, clusters: int) -> None:
    """In float32 each of the 600 points was one. Singletons are merged after that, as the released code does."""
    points = l2_normalize(noise(600, 48, seed))
    neighbours, squared = nearest_neighbours(points, 5)
    graph = affinity(neighbours, squared, 0.2)
    assert climb(graph, power_iteration(graph, 0.001, 200)).max() + 1 == maxima
    assert PIC().fit_predict(points).n_clusters == clusters


def test_more_neighbours_not_another_sigma_bring_clean_blobs_together() -> None:
    """The number of local maxima grows with N at a fixed number of neighbours, whatever the width of the kernel."""
    kind = np.repeat(np.arange(12), 100)
    points = l2_normalize(noise(12, 48, 0)[kind] + 0.05 * noise(1200, 48, 1))
    narrow, auto = (PIC(sigma=sigma).fit_predict(points).n_clusters for sigma in (0.2, "auto"))
    assert min(narrow, auto) > 24
    wide = PIC(sigma="auto", n_neighbors=45).fit_predict(points)
    assert wide.n_clusters == 12
    assert nmi(wide.labels, kind) == pytest.approx(1)


def random_graph(seed: int, size: int = 80) -> sparse.csr_array:
    rng = np.random.default_rng(seed)
    dense = np.where(rng.random((size, size)) < 0.03, rng.integers(1, 4, (size, size)), 0.0)  # has empty rows, ties
    return sparse.csr_array(np.triu(dense, 1) + np.triu(dense, 1).T)


@pytest.mark.parametrize("seed", range(20))
def test_climb_equals_the_loop_on_graphs_with_ties_and_lonely_points(seed: int) -> None:
    graph, v = random_graph(seed), np.random.default_rng(seed).integers(0, 5, 80).astype(float)
    labels = climb(graph, v)
    assert_same_clusters(labels, reference_climb(graph.toarray(), v))
    assert sorted(set(labels)) == list(range(labels.max() + 1))


@pytest.mark.parametrize("seed", range(20))
def test_singletons_are_merged_as_in_the_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.unique(rng.integers(0, 40, 50), return_inverse=True)[1]
    neighbours = np.stack([rng.permutation(np.delete(np.arange(50), i))[:2] for i in range(50)])
    merged, n_clusters = merge_singletons(labels, neighbours)
    assert_same_clusters(merged, reference_merge(labels.tolist(), neighbours))
    assert n_clusters == len(set(merged)) == merged.max() + 1


def test_a_singleton_among_singletons_stays() -> None:
    merged, n_clusters = merge_singletons(np.array([0, 1, 2, 2]), np.array([[1], [0], [3], [2]]))
    assert (merged.tolist(), n_clusters) == ([0, 1, 2, 2], 3)


def test_a_long_way_up_is_one_cluster() -> None:
    size = 1000
    path = sparse.diags_array([np.ones(size - 1)] * 2, offsets=[1, -1]).tocsr()
    assert not climb(path, np.arange(size, dtype=float)).any()


def test_the_graph_is_symmetric_and_adds_both_directions() -> None:
    graph = affinity(np.array([[1], [0], [1]]), np.array([[1], [1], [4]], F), sigma=2.0).toarray()
    one, four = np.exp(-0.25), np.exp(-1.0)
    np.testing.assert_allclose(graph, [[0, 2 * one, 0], [2 * one, 0, four], [0, four, 0]], rtol=1e-14)


def test_the_power_iteration_ends_in_its_fixed_point() -> None:
    graph = random_graph(1)
    v = power_iteration(graph, 0.01, 200)
    exact = np.linalg.eig(
        0.01 * graph.toarray() + 0.99 / 80
    )  # v is the leading eigenvector of alpha W + (1 - alpha)/N 11ᵀ
    leading = np.abs(exact.eigenvectors[:, exact.eigenvalues.real.argmax()].real)
    np.testing.assert_allclose(v, leading / leading.sum(), rtol=1e-10)
    assert v.dtype == np.float64


def test_auto_sigma_is_the_median_neighbour_distance() -> None:
    assert median_distance(np.array([[1, 4, 9], [16, 25, 36]], F)) == pytest.approx(3.5)
    assert median_distance(np.array([[0, 0, 0], [0, 4, 16]], F)) == pytest.approx(3.0)  # of those apart
    assert median_distance(np.zeros((2, 2), F)) == 1.0


def test_auto_sigma_makes_labels_independent_of_scale() -> None:
    points = noise(200)
    labels = PIC(sigma="auto").fit_predict(points).labels
    np.testing.assert_array_equal(PIC(sigma="auto").fit_predict(points * 1024).labels, labels)


@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1e15])
def test_extreme_scales_give_labels_and_no_warnings(scale: float) -> None:
    with np.errstate(all="raise", under="ignore"):
        for sigma in (0.2, "auto", 1e-300):
            assert PIC(sigma=sigma).fit_predict(noise(50) * scale).labels.min() == 0  # type: ignore[arg-type]


def test_a_kernel_too_narrow_is_said_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = PIC(sigma=1e-3).fit_predict(noise(100))
    assert found.n_clusters == 100
    assert "try sigma=auto" in caplog.text

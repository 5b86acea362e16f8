"""Exact neighbours against a table of all distances."""

import numpy as np
import pytest

from decar.clustering.nearest import faiss_threads, nearest_neighbours
from tests.clustering.test_base import noise


def brute_force(points: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    squared = ((points[:, None].astype(np.float64) - points[None]) ** 2).sum(axis=2)
    np.fill_diagonal(squared, np.inf)
    order = np.argsort(squared, axis=1, kind="stable")[:, :n]
    return order, np.take_along_axis(squared, order, axis=1)


@pytest.mark.parametrize("n_points", [7, 19, 500])
def test_neighbours_equal_brute_force(n_points: int) -> None:
    indices, squared = nearest_neighbours(noise(n_points), 6)
    expected, distances = brute_force(noise(n_points), 6)
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_allclose(squared, distances, rtol=1e-5)
    assert (indices.dtype, squared.dtype) == (np.int64, np.float32)


def test_a_few_duplicates_count_and_lie_at_exactly_zero() -> None:
    points = np.concatenate([noise(40), noise(40), noise(20)])  # 2 or 3 copies each
    indices, squared = nearest_neighbours(points, 2)
    assert (squared[:, 0] == 0).all()
    np.testing.assert_array_equal(indices[:, 0], brute_force(points, 2)[0][:, 0])


def test_no_point_is_its_own_neighbour_even_among_many_duplicates() -> None:
    points = np.repeat(noise(3), 50, axis=0)
    indices, squared = nearest_neighbours(points, 5)
    assert (indices != np.arange(150)[:, None]).all()
    assert (indices // 50 == np.arange(150)[:, None] // 50).all()
    assert all(len(set(row)) == 5 for row in indices.tolist())
    assert not squared.any()


def test_threads_are_restored_after_an_error() -> None:
    with faiss_threads(None) as faiss:
        before = faiss.omp_get_max_threads()
    with pytest.raises(RuntimeError), faiss_threads(before + 1) as faiss:
        faiss.IndexFlatL2(3).reconstruct(7)
    assert faiss.omp_get_max_threads() == before

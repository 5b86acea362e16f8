"""The approximate graph against the exact one, and the search's corner cases."""

import faiss
import numpy as np
import pytest

from decar.clustering import PIC, l2_normalize, nmi, pic
from decar.clustering.approximate import _Cells, _nearest_cells, approximate_neighbours, first_of_duplicates
from decar.clustering.nearest import nearest_neighbours
from decar.errors import ClusteringError
from tests.clustering.test_base import noise


def kinds(n: int = 6000, k: int = 60, d: int = 32) -> np.ndarray:
    rng = np.random.default_rng(2)
    return l2_normalize(rng.normal(size=(k, d))[rng.integers(k, size=n)] + rng.normal(scale=0.7, size=(n, d)))


def test_most_neighbours_are_found_and_labels_agree_on_structured_data() -> None:
    points = kinds()
    found, squared = approximate_neighbours(points, 5)
    exact, distances = nearest_neighbours(points, 5)
    assert 0.9 < (found[:, :, None] == exact[:, None]).any(axis=2).mean() < 1.0  # below 1: it is another search
    assert (squared >= distances * (1 - 1e-6)).all()  # no neighbour is nearer than the nearest
    labels = [PIC(sigma="auto", neighbors=how).fit_predict(points).labels for how in ("approximate", "exact")]
    assert nmi(*labels) > 0.95


def test_distances_are_those_of_the_neighbours_in_ascending_order() -> None:
    points = kinds(500)
    found, squared = approximate_neighbours(points, 4)
    np.testing.assert_allclose(squared, ((points[found] - points[:, None]) ** 2).sum(axis=2), rtol=1e-5)
    assert (np.diff(squared, axis=1) >= 0).all()
    assert (found != np.arange(500)[:, None]).all()
    assert (found.dtype, squared.dtype) == (np.int64, np.float32)


def test_one_seed_is_one_graph_on_any_number_of_threads() -> None:
    points = kinds(5000)
    first = approximate_neighbours(points, 5, seed=3, n_threads=1)
    for n_threads in (1, 2, 3):
        again = approximate_neighbours(points, 5, seed=3, n_threads=n_threads)
        np.testing.assert_array_equal(first[0], again[0])
        np.testing.assert_array_equal(first[1], again[1])
    assert not np.array_equal(first[0], approximate_neighbours(points, 5, seed=4)[0])


@pytest.mark.parametrize("n", [7, 30, 200])
def test_where_cells_hold_too_few_points_all_are_compared(n: int) -> None:
    points = noise(n)
    found, _ = approximate_neighbours(points, 6)
    assert ((found >= 0) & (found < n)).all()
    assert all(len(set(row)) == 6 for row in found.tolist())
    if n == 7:
        np.testing.assert_array_equal(found, nearest_neighbours(points, 6)[0])


def test_far_more_neighbours_than_a_cell_holds() -> None:
    points = noise(300)
    found, squared = approximate_neighbours(points, 250)
    exact, distances = nearest_neighbours(points, 250)
    np.testing.assert_array_equal(found, exact)
    np.testing.assert_array_equal(squared, distances)


def test_duplicates_do_not_crowd_one_cell_and_stay_one_cluster() -> None:
    """All look in the first piece of their cell: each searching its own, they fell apart into as many clusters."""
    points = np.concatenate([np.full((12_000, 32), 0.3, np.float32), kinds(8000)])
    found, squared = approximate_neighbours(points, 5)
    assert (found[:12_000] < 12_000).all()
    assert not squared[:12_000].any()
    labels = [PIC(sigma="auto", neighbors=how).fit_predict(points).labels for how in ("approximate", "exact")]
    assert len(np.unique(labels[0][:12_000])) == 1
    assert nmi(*labels) > 0.95


def test_copies_are_found_whatever_their_place() -> None:
    points = kinds(5000)
    points[[700, 4999]], points[4096] = points[3], points[4095]
    first = first_of_duplicates(points)
    assert (np.flatnonzero(first != np.arange(5000)).tolist(), first[[700, 4096, 4999]].tolist()) == (
        [700, 4096, 4999], [3, 4095, 3],
    )  # fmt: skip


def test_copies_have_the_same_cells_though_faiss_rounds_otherwise_at_the_end_of_a_block() -> None:
    points = np.concatenate([np.full((12_000, 32), 0.3, np.float32), kinds(8000)])
    cells, distances = _nearest_cells(faiss, points, 100, seed=0)
    assert (cells[:12_000] == cells[0]).all()
    assert (distances[:12_000] == distances[0]).all()


def test_a_crowded_cell_is_cut() -> None:
    probes = np.concatenate([np.zeros(900, np.int32), np.arange(100, dtype=np.int32) % 9 + 1])[:, None]
    cells = _Cells.cut(probes, 10)
    sizes = np.bincount(cells.own)
    assert (sizes.sum(), sizes.max(), len(sizes)) == (1000, 800, cells.number)
    assert cells.first.tolist() == [0, *range(2, 11)]


def test_all_points_the_same() -> None:
    found = PIC(neighbors="approximate").fit_predict(np.ones((500, 3), np.float32))
    assert found.objective == 0.0


def test_auto_is_exact_up_to_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    assert PIC().is_exact(100_000)
    assert not PIC().is_exact(100_001)
    assert PIC().is_exact(1_000_000, gpu=True)
    assert not PIC().is_exact(1_000_001, gpu=True)
    assert PIC(neighbors="exact").is_exact(10**9)
    assert not PIC(neighbors="approximate").is_exact(10)
    points = kinds(3000)
    monkeypatch.setattr(pic, "EXACT_UP_TO", 2999)
    monkeypatch.setattr(pic, "nearest_neighbours", None)  # a call of it would raise
    large = PIC(sigma="auto").fit_predict(points)
    np.testing.assert_array_equal(large.labels, PIC(sigma="auto", neighbors="approximate").fit_predict(points).labels)


def test_exact_means_exact_beyond_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    points = kinds(3000)
    whole = PIC(sigma="auto").fit_predict(points).labels
    monkeypatch.setattr(pic, "EXACT_UP_TO", 10)
    monkeypatch.setattr(pic, "approximate_neighbours", None)
    np.testing.assert_array_equal(PIC(sigma="auto", neighbors="exact").fit_predict(points).labels, whole)


def test_another_word_is_refused() -> None:
    with pytest.raises(ClusteringError, match=r"neighbors=some .* auto, exact or approximate"):
        PIC(neighbors="some").fit_predict(noise())  # type: ignore[arg-type]

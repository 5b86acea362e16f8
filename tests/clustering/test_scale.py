"""What large sets need: nothing is copied whole, and blocks do not change a result."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from decar.clustering import PIC, KMeans, Whitening, base, l2_normalize, nearest, pic, prepare, whiten
from decar.clustering.base import check_features, not_finite, query_blocks, row_blocks
from decar.clustering.nearest import nearest_neighbours
from decar.clustering.pic import affinity, climb
from decar.errors import ClusteringError
from tests.clustering.test_base import noise

IN_WHITEN = whiten.__globals__  # the function hides the module of its name
Run = Callable[[np.ndarray], Any]


@pytest.fixture
def mapped(tmp_path: Path) -> Callable[[np.ndarray], np.memmap]:
    """Puts an array into a file and maps it, read-only."""

    def build(points: np.ndarray) -> np.memmap:
        np.save(tmp_path / "x.npy", points)
        opened = np.load(tmp_path / "x.npy", mmap_mode="r")
        assert isinstance(opened, np.memmap)
        return opened

    return build


def peak_of(run: Callable[[], Any]) -> int:
    """Bytes that numpy has had at most."""
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.float64])
@pytest.mark.parametrize(
    "run",
    [
        lambda x: prepare(x, 6),
        lambda x: KMeans(k=9).fit_predict(x).labels,
        lambda x: KMeans(k=9, max_points=300).fit_predict(x).labels,
        lambda x: PIC(sigma="auto").fit_predict(x).labels,
        lambda x: PIC(sigma="auto", neighbors="approximate").fit_predict(x).labels,
    ],
    ids=["prepare", "kmeans", "sample", "exact", "approximate"],
)
def test_a_memory_map_gives_what_the_array_gives(mapped: Callable[..., np.memmap], run: Run, kind: Any) -> None:
    points = noise(1500).astype(kind)
    np.testing.assert_array_equal(run(mapped(points)), run(points.astype(np.float32)))


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_whitening_copies_no_more_than_blocks(
    mapped: Callable[..., np.memmap], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: Any
) -> None:
    monkeypatch.setitem(IN_WHITEN, "_ROWS_AT_ONCE", 1000)
    monkeypatch.setattr(row_blocks, "__defaults__", (1000,))
    points = mapped(noise(100_000, 16).astype(kind))
    out = np.lib.format.open_memmap(tmp_path / "out.npy", "w+", np.float32, (100_000, 8))
    assert peak_of(lambda: prepare(points, 8, out)) < 0.15 * points.nbytes
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), prepare(points, 8))


def test_kmeans_copies_no_float32_map(mapped: Callable[..., np.memmap], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_blocks, "__defaults__", (4096,))
    points = mapped(noise(60_000, 64))
    assert peak_of(lambda: KMeans(k=4, n_iter=2).fit_predict(points)) < 0.3 * points.nbytes
    assert peak_of(lambda: check_features(points)) < 0.1 * points.nbytes


def test_pic_needs_little_beside_the_graph(mapped: Callable[..., np.memmap], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_blocks, "__defaults__", (4096,))
    monkeypatch.setattr(query_blocks, "__defaults__", (4096,))
    monkeypatch.setattr(nearest, "_ROWS_AT_ONCE", 4096)
    points = mapped(noise(40_000, 128))
    clusterer = PIC(sigma="auto", neighbors="approximate", n_iter=5)
    assert peak_of(lambda: clusterer.fit_predict(points)) < 2 * points.nbytes


def test_check_features_returns_the_map_itself(mapped: Callable[..., np.memmap]) -> None:
    points = mapped(noise())
    assert np.shares_memory(check_features(points), points)


def test_streamed_whitening_equals_whole() -> None:
    """Moments of all rows at once, as a textbook has them."""
    points = (noise(5000, 12) @ noise(12, 12, 1) + 7).astype(np.float32)
    streamed = [prepare(points, 5)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(IN_WHITEN, "_ROWS_AT_ONCE", 333)
        streamed.append(prepare(points, 5))
    mean, covariance = points.mean(axis=0, dtype=np.float64), np.cov(points.T.astype(np.float64))
    variance, directions = np.linalg.eigh(covariance)
    white = (points - mean) @ (directions[:, ::-1][:, :5] / np.sqrt(variance[::-1][:5]))
    for found in streamed:
        signs = np.sign((found * white).sum(axis=0))
        np.testing.assert_allclose(found, l2_normalize(white * signs), atol=1e-5)


def test_the_mean_is_to_the_bit_that_of_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(IN_WHITEN, "_ROWS_AT_ONCE", 77)
    points = noise(1001, 5) * 3 + 100
    np.testing.assert_array_equal(Whitening.fit(points, 5).mean, points.mean(axis=0, dtype=np.float64))


@pytest.mark.parametrize("out", [np.empty((300, 9), np.float32), np.empty((300, 4)), np.empty((299, 4), np.float32)])
def test_an_out_that_does_not_fit_is_refused(out: np.ndarray) -> None:
    with pytest.raises(ClusteringError, match=r"\(300, 4\) float32"):
        prepare(noise(), 4, out)


def test_out_is_filled_and_returned() -> None:
    out = np.full((300, 4), np.nan, np.float32)
    assert prepare(noise(), 4, out) is out
    np.testing.assert_array_equal(out, l2_normalize(whiten(noise(), 4)))


def test_a_bad_row_of_a_later_block_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_blocks, "__defaults__", (50,))
    points = noise()
    points[[120, 260]] = np.inf
    assert not_finite(points).tolist() == [120, 260]
    with pytest.raises(ClusteringError, match=r"row 120 .*\(2 such rows\)"):
        check_features(points)


@pytest.mark.parametrize("n", [1, 5, 9, 10, 11, 14, 15, 100])
@pytest.mark.parametrize("least", [1, 5])
def test_blocks_cover_all_rows_once(n: int, least: int) -> None:
    blocks = list(row_blocks(n, 10, least=least))
    assert [i for rows in blocks for i in range(rows.start, rows.stop)] == list(range(n))
    sizes = [rows.stop - rows.start for rows in blocks]
    assert all(size == 10 for size in sizes[:-1])
    assert len(blocks) == 1 or least <= sizes[-1] < 10 + least


def test_faiss_finds_in_blocks_what_it_finds_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    points = noise(9000)
    whole = KMeans(k=50).fit_predict(points)
    neighbours = nearest_neighbours(points, 5)
    monkeypatch.setattr(query_blocks, "__defaults__", (base._QUERIES_AT_ONCE,))
    monkeypatch.setattr(nearest, "_ROWS_AT_ONCE", base._QUERIES_AT_ONCE)
    found = KMeans(k=50).fit_predict(points)
    np.testing.assert_array_equal(found.labels, whole.labels)
    assert found.objective == whole.objective
    for first, second in zip(neighbours, nearest_neighbours(points, 5), strict=True):
        np.testing.assert_array_equal(first, second)


def test_climbing_in_blocks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    neighbours, squared = nearest_neighbours(noise(2000), 5)
    graph, v = affinity(neighbours, squared, 1.0), np.random.default_rng(0).random(2000)
    whole = climb(graph, v)
    monkeypatch.setattr(row_blocks, "__defaults__", (77,))
    np.testing.assert_array_equal(climb(graph, v), whole)


def test_the_objective_in_blocks_of_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    points = noise(500, 37)
    labels = np.random.default_rng(0).integers(9, size=500)
    centres = np.stack([points[labels == c].mean(axis=0, dtype=np.float64) for c in range(9)])
    assert pic._mean_squared_radius(points, labels) == pytest.approx(
        ((points - centres[labels]) ** 2).sum(axis=1).mean(), rel=1e-12
    )


def test_a_power_iteration_that_stands_still_is_not_gone_on_with() -> None:
    neighbours, squared = nearest_neighbours(noise(200), 5)
    graph = affinity(neighbours, squared, 1.0)
    v = np.full(200, 1 / 200)
    for _ in range(300):
        v = 0.001 * (graph @ v) + (1 - 0.001) / 200
        v /= v.sum()
    np.testing.assert_array_equal(pic.power_iteration(graph, 0.001, 300), v)

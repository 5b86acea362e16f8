"""The contract that every clusterer keeps, run over all of them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from decar.clustering import PIC, Clusterer, KMeans, nmi
from decar.clustering.base import check_features
from decar.errors import ClusteringError

Make = Callable[..., Clusterer]
CLUSTERERS = [
    pytest.param(lambda **options: KMeans(k=12, **options), id="kmeans"),
    pytest.param(lambda **options: KMeans(k=12, superkmeans=True, **options), id="superkmeans"),
    pytest.param(lambda **options: PIC(sigma="auto", **options), id="pic"),
]
every_clusterer = pytest.mark.parametrize("make", CLUSTERERS)


def noise(n: int = 300, d: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def blobs(n: int = 400, k: int = 4, d: int = 8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    kind = rng.integers(k, size=n)
    return (20 * np.eye(k, d)[kind] + rng.normal(scale=0.3, size=(n, d))).astype(np.float32), kind


@every_clusterer
def test_an_assignment_is_complete(make: Make) -> None:
    found = make().fit_predict(noise())
    assert found.labels.dtype == np.int64
    assert found.labels.shape == (300,)
    assert type(found.n_clusters) is int
    assert 0 <= found.labels.min() <= found.labels.max() < found.n_clusters
    assert type(found.objective) is float
    assert found.objective > 0


@every_clusterer
def test_same_seed_same_labels(make: Make) -> None:
    first, again = make(seed=3).fit_predict(noise()), make(seed=3).fit_predict(noise())
    np.testing.assert_array_equal(first.labels, again.labels)
    assert first.objective == again.objective


@every_clusterer
def test_with_seed_changes_the_seed_and_nothing_else(make: Make) -> None:
    clusterer = make(seed=1)
    assert clusterer.with_seed(7) == make(seed=7)
    assert clusterer.seed == 1


@every_clusterer
@pytest.mark.parametrize("seed", [2**31 - 1, 2**63 - 1])
def test_any_seed_will_do(make: Make, seed: int) -> None:
    assert make().with_seed(seed).fit_predict(noise()).labels.shape == (300,)


@every_clusterer
def test_a_refit_forgets_the_fit_before(make: Make) -> None:
    clusterer = make()
    first = clusterer.fit_predict(noise()).labels
    clusterer.fit_predict(noise(500, 5, seed=9))
    np.testing.assert_array_equal(clusterer.fit_predict(noise()).labels, first)


@every_clusterer
def test_threads_do_not_change_labels_and_are_given_back(make: Make) -> None:
    faiss = pytest.importorskip("faiss")
    before = faiss.omp_get_max_threads()
    one, three = (make(n_threads=n).fit_predict(noise(2000)).labels for n in (1, 3))
    np.testing.assert_array_equal(one, three)
    assert faiss.omp_get_max_threads() == before


@every_clusterer
def test_separated_blobs_are_never_mixed(make: Make) -> None:
    points, kind = blobs()
    found = make().fit_predict(points)
    for label in range(found.n_clusters):
        assert len(np.unique(kind[found.labels == label])) <= 1
    assert nmi(found.labels, kind) > 0.6  # PIC splits a blob into its peaks of density, so not 1


@every_clusterer
def test_the_objective_is_the_mean_squared_distance_to_the_centres(make: Make) -> None:
    points, _ = blobs()
    found = make().fit_predict(points)
    centres = np.stack([points[found.labels == label].mean(axis=0) for label in range(found.n_clusters)])
    assert found.objective == pytest.approx(np.mean(np.sum((points - centres[found.labels]) ** 2, axis=1)), rel=1e-2)


@every_clusterer
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("read-only", lambda x: _read_only(x)),
        ("every other column", lambda x: np.repeat(x, 2, axis=1)[:, ::2]),
        ("Fortran order", np.asfortranarray),
        ("float64", lambda x: x.astype(np.float64)),
    ],
)
def test_layout_does_not_matter(make: Make, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    np.testing.assert_array_equal(make().fit_predict(change(noise())).labels, make().fit_predict(noise()).labels)


def _read_only(x: np.ndarray) -> np.ndarray:
    x.setflags(write=False)
    return x


@every_clusterer
def test_the_input_is_left_alone(make: Make) -> None:
    points = noise()
    make().fit_predict(points)
    np.testing.assert_array_equal(points, noise())


@every_clusterer
def test_fewer_distinct_points_than_clusters_or_neighbours(make: Make) -> None:
    found = make().fit_predict(np.repeat(noise(2), 20, axis=0))
    assert len(np.unique(found.labels[:20])) == len(np.unique(found.labels[20:])) == 1
    assert found.labels[0] != found.labels[20]
    assert make().fit_predict(np.ones((20, 3), np.float32)).objective == pytest.approx(0.0, abs=1e-9)


@every_clusterer
@pytest.mark.parametrize(
    ("features", "message"),
    [
        (
            np.where(np.arange(300)[:, None] == 7, np.nan, noise()),
            r"row 7 of the features holds NaN or Inf \(1 such rows\)",
        ),
        (np.where(np.arange(300)[:, None] > 297, np.inf, noise()), r"row 298 .* NaN or Inf \(2 such rows\)"),
        (np.where(np.arange(300)[:, None] == 5, 1e19, noise()), "row 5 .* too large"),
        (noise().ravel(), r"found shape \(2400,\)"),
        (noise().reshape(30, 10, 8), r"found shape \(30, 10, 8\)"),
        (np.empty((0, 8), np.float32), r"found shape \(0, 8\)"),
        (np.empty((8, 0), np.float32), r"found shape \(8, 0\)"),
        (noise(3), "lower .* or add sounds"),
    ],
)
def test_unusable_features_are_refused_in_one_line(make: Make, features: np.ndarray, message: str) -> None:
    with pytest.raises(ClusteringError, match=message) as caught:
        make().fit_predict(features)
    assert "\n" not in str(caught.value)


@every_clusterer
def test_a_missing_faiss_names_both_extras(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(ClusteringError, match=r'pip install "decar\[cpu\]", or "decar\[gpu\]"'):
        make().fit_predict(noise())


@every_clusterer
def test_a_gpu_asked_for_and_not_there_is_said(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytest.importorskip("faiss"), "get_num_gpus", lambda: 0)
    with pytest.raises(ClusteringError, match=r"faiss sees no GPU|superkmeans=true runs on the CPU"):
        make(gpu=True).fit_predict(noise())


@pytest.mark.parametrize(
    ("clusterer", "message"),
    [
        (KMeans(k=0), "k=0"),
        (KMeans(k=2, n_iter=0), "n_iter=0"),
        (KMeans(k=2, n_init=0), "n_init=0"),
        (KMeans(k=301), r"k=301 is larger than the number of clips \(300\)"),
        (PIC(n_neighbors=0), "n_neighbors=0"),
        (PIC(n_neighbors=300), r"n_neighbors=300 needs more clips than 300"),
        (PIC(sigma=0.0), r"sigma=0\.0"),
        (PIC(sigma=float("nan")), "sigma=nan"),
        (PIC(sigma="wide"), "sigma=wide"),  # type: ignore[arg-type]
        (PIC(alpha=1.0), r"alpha=1\.0"),
        (PIC(n_iter=0), "n_iter=0"),
    ],
)
def test_senseless_options_are_refused_by_name(clusterer: Clusterer, message: str) -> None:
    with pytest.raises(ClusteringError, match=message):
        clusterer.fit_predict(noise())


def test_good_features_are_not_copied() -> None:
    points: Any = noise()
    assert check_features(points) is points

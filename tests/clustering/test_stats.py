"""NMI against scikit-learn; entropy and effective rank against cases that are known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import normalized_mutual_info_score
from threadpoolctl import threadpool_limits

from decar.clustering import nmi
from decar.clustering.stats import cluster_sizes, effective_rank, entropy
from decar.errors import ClusteringError
from tests.clustering.test_base import noise

pairs_of_labels = st.lists(st.tuples(st.integers(-3, 6), st.integers(0, 3)), min_size=1, max_size=60)


@given(pairs_of_labels)
def test_nmi_equals_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    a, b = np.array(pairs).T
    single = min(len(set(a)), len(set(b))) == 1
    theirs = 0.0 if single else normalized_mutual_info_score(a, b, average_method="geometric")
    assert nmi(a, b) == pytest.approx(theirs, abs=1e-9)


@given(pairs_of_labels)
def test_nmi_is_symmetric_and_blind_to_names(pairs: list[tuple[int, int]]) -> None:
    a, b = np.array(pairs).T
    assert nmi(a, b) == pytest.approx(nmi(b, 100 - a), abs=1e-12)
    assert nmi(a, 7 - 3 * a) == pytest.approx(float(len(set(a)) > 1))
    assert 0.0 <= nmi(a, b) <= 1.0


def test_nmi_of_many_clusters_equals_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(1000, size=20_000)
    b = np.where(rng.random(20_000) < 0.5, a, rng.integers(1000, size=20_000))
    assert nmi(a, b) == pytest.approx(normalized_mutual_info_score(a, b, average_method="geometric"), abs=1e-9)


def test_nmi_with_single_clusters() -> None:
    assert nmi([3, 3, 3], [1, 1, 1]) == 0.0, "two collapsed assignments agree on nothing"
    assert nmi([3, 3, 3], [1, 2, 1]) == 0.0
    assert nmi([1, 2, 1], [3, 3, 3]) == 0.0


@pytest.mark.parametrize(("a", "b"), [([0, 1], [0, 1, 1]), ([], []), ([[0, 1]], [[0, 1]])])
def test_nmi_refuses_what_are_not_two_labellings(a: list[int], b: list[int]) -> None:
    with pytest.raises(ClusteringError, match="shapes"):
        nmi(a, b)


def test_sizes_count_empty_clusters() -> None:
    assert cluster_sizes(np.array([2, 0, 2]), 4).tolist() == [1, 0, 2, 0]


def test_entropy() -> None:
    assert entropy(np.repeat([0, 1, 5], 4), 6) == pytest.approx(1.0)
    assert entropy(np.array([0, 0, 0, 1]), 2) == pytest.approx((0.75 * np.log(4 / 3) + 0.25 * np.log(4)) / np.log(2))
    assert entropy(np.zeros(9, np.int64), 512) == 0.0


def test_effective_rank() -> None:
    orthogonal = np.linalg.qr(noise(200, 8))[0]
    assert effective_rank(orthogonal) == pytest.approx(8, rel=1e-5)
    assert effective_rank(orthogonal[:, :1] * np.ones((1, 8))) == pytest.approx(1, abs=1e-3)
    assert effective_rank(np.zeros((9, 3))) == 0.0


@pytest.mark.parametrize("shape", [(50, 10), (10, 50)])
def test_effective_rank_equals_its_definition(shape: tuple[int, int]) -> None:
    points = noise(*shape)
    values = np.linalg.svd(points, compute_uv=False)
    share = values / values.sum()
    assert effective_rank(points) == pytest.approx(np.exp(-np.sum(share * np.log(share))), rel=1e-4)


@pytest.mark.parametrize("shape", [(700, 90), (300, 512)])
def test_effective_rank_does_not_depend_on_the_number_of_threads(shape: tuple[int, int]) -> None:
    points = np.maximum(noise(*shape), 0)
    found = set()
    for threads in (1, 2):
        with threadpool_limits(threads):
            found.add(effective_rank(points))
    assert len(found) == 1

"""Whitening against its definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_mutual_info_score

from decar.clustering import KMeans, Whitening, affordable_dim, l2_normalize, prepare, whiten
from decar.clustering import whiten as whiten_module_function
from decar.errors import ClusteringError
from tests.clustering.test_base import noise


def correlated(n: int = 500, p: int = 12, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, p)) @ rng.normal(size=(p, p)) + rng.normal(size=p) * 10).astype(np.float32)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), p=st.integers(1, 10), dim=st.integers(1, 12))
def test_mean_is_zero_and_covariance_the_identity(seed: int, p: int, dim: int) -> None:
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(p, p)))[0]
    points = rng.normal(size=(400, p)) * np.linspace(0.1, 3, p) @ basis + rng.normal(size=p)
    white = whiten(points, dim)
    assert white.shape == (400, min(dim, p))
    assert white.dtype == np.float32
    np.testing.assert_allclose(white.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(np.atleast_2d(np.cov(white.T)), np.eye(min(dim, p)), atol=1e-4)


def test_columns_are_the_principal_components_in_order() -> None:
    points = correlated()
    centred = points.astype(np.float64) - points.mean(axis=0, dtype=np.float64)
    left, _, _ = np.linalg.svd(centred, full_matrices=False)
    expected = left[:, :5] * np.sqrt(499)
    agreement = np.sum(whiten(points, 5) * expected, axis=0) / 499
    np.testing.assert_allclose(np.abs(agreement), 1, atol=1e-4)


def test_the_sign_is_that_of_the_largest_component() -> None:
    points = noise(200, 2) * np.array([10, 1], np.float32)
    assert np.corrcoef(whiten(points)[:, 0], points[:, 0])[0, 1] > 0.99
    assert np.corrcoef(whiten(-points)[:, 0], -points[:, 0])[0, 1] > 0.99


def test_directions_without_variance_become_zero_columns() -> None:
    points = noise(200, 3)
    flat = np.concatenate([points, points[:, :1] + points[:, 1:2], np.full((200, 1), 3.3, np.float32)], axis=1)
    white = whiten(flat)
    assert white.shape == (200, 5)
    np.testing.assert_allclose(np.cov(white.T), np.diag([1, 1, 1, 0, 0]), atol=1e-4)
    assert not white[:, 3:].any()


@pytest.mark.parametrize(
    ("n", "kept"), [(1, 1), (6, 2), (30, 4), (45, 4), (150, 5), (470, 15), (1991, 66), (3839, 127), (3840, 128)]
)
def test_dimensions_follow_the_number_of_points(n: int, kept: int) -> None:
    assert affordable_dim(n) == kept
    assert affordable_dim(n, 3) == min(3, kept)
    assert affordable_dim(10**9) == 128


@pytest.mark.parametrize("n", [6, 10, 45, 100, 129])
def test_few_points_never_become_a_simplex(n: int) -> None:
    points = noise(n, 256)
    cosines = (prepare(points) @ prepare(points).T)[~np.eye(n, dtype=bool)]
    assert np.std(cosines) > 0.2, "all pairs at -1 / (N - 1): nothing is left to cluster"
    np.testing.assert_allclose(np.cov(whiten(points).T), np.eye(affordable_dim(n)), atol=1e-4)


@pytest.mark.parametrize("n", [45, 100, 150, 470])
def test_kinds_are_found_in_few_points(n: int) -> None:
    rng = np.random.default_rng(0)
    kinds = np.arange(n) % 5
    points = 3 * rng.normal(size=(5, 512))[kinds] / np.sqrt(8) + rng.normal(size=(n, 512))
    found = KMeans(k=8).fit_predict(prepare(points)).labels
    assert adjusted_mutual_info_score(kinds, found) > 0.6


def test_as_many_dimensions_as_asked_for_on_demand() -> None:
    white = Whitening.fit_exactly(noise(6, 20), 128)(noise(6, 20))
    np.testing.assert_allclose(np.cov(white.T), np.diag([1.0] * 5 + [0.0] * 15), atol=1e-4)
    with pytest.raises(ClusteringError, match="dim"):
        Whitening.fit_exactly(noise(6, 20), 0)


@pytest.mark.parametrize("points", [np.full((12345, 4), 0.1), np.zeros((50, 4)), noise(1)])
def test_without_any_variance_all_is_zero(points: np.ndarray) -> None:
    assert not whiten(points).any()
    assert not prepare(points).any()


def test_a_large_offset_does_not_hide_small_variance() -> None:
    points = noise(300, 3)
    np.testing.assert_allclose(np.cov(whiten(points + 1000).T), np.eye(3), atol=1e-3)


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = whiten(correlated())
    monkeypatch.setitem(whiten_module_function.__globals__, "_ROWS_AT_ONCE", 77)
    np.testing.assert_allclose(whiten(correlated()), whole, atol=1e-4)


def test_the_input_is_left_alone() -> None:
    points = correlated()
    prepare(points)
    np.testing.assert_array_equal(points, correlated())


def test_rows_have_unit_length_and_zeros_stay() -> None:
    points = noise(5, 4) * np.array([[0], [1e-30], [1], [1e15], [1e30]], np.float32)
    np.testing.assert_allclose(np.linalg.norm(l2_normalize(points), axis=1), [0, 1, 1, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(prepare(correlated(), 4), axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize(("points", "dim"), [(noise().ravel(), 4), (np.full((4, 4), np.nan), 2), (noise(), 0)])
def test_bad_input_is_refused(points: np.ndarray, dim: int) -> None:
    with pytest.raises(ClusteringError):
        whiten(points, dim)


@pytest.mark.parametrize("n", [2, 5, 40, 59])
def test_fewer_points_than_dimensions_whiten_as_by_their_covariance(n):
    points = (np.random.default_rng(n).normal(size=(n, 60)) * np.linspace(0.2, 3, 60) + 5).astype(np.float32)
    found = Whitening.fit_exactly(points, 10)
    variance, directions = np.linalg.eigh(np.cov(points.astype(np.float64).T))
    order = np.argsort(-variance)[: min(10, n - 1)]
    white = found(points)
    assert found.projection.shape == (60, 10)
    expected = (points - points.mean(axis=0, dtype=np.float64)) @ (directions[:, order] / np.sqrt(variance[order]))
    signs = np.sign((white[:, : len(order)] * expected).sum(axis=0))
    np.testing.assert_allclose(white[:, : len(order)], expected * signs, atol=2e-3)
    assert not white[:, len(order) :].any(), "directions without variance are zeros"

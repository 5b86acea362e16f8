"""PCA, whitening and unit length: what is done to the vectors before they are clustered (paper, section 3.2)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decar.clustering.base import check_features, require_at_least_one

_ROWS_AT_ONCE = 65_536


@dataclass(frozen=True)
class Whitening:
    """A projection on leading principal directions, each scaled to unit variance; learned from some points.

    Attributes:
        mean: `(P,)` float64.
        projection: `(P, d)` float64.
    """

    mean: NDArray[np.float64]
    projection: NDArray[np.float64]

    @classmethod
    def fit(cls, features: NDArray[Any], dim: int = 128) -> "Whitening":
        """Learn it from `(N, P)` features; see `whiten`."""
        require_at_least_one(dim=dim)
        points = check_features(features)
        mean = points.mean(axis=0, dtype=np.float64)
        covariance = scatter(points, mean) / max(len(points) - 1, 1)
        variance, directions = np.linalg.eigh(covariance)  # ascending
        variance, directions = variance[::-1][:dim], directions[:, ::-1][:, :dim]
        alive = variance > 1e-6 * variance[0]
        gain = np.where(alive, 1 / np.sqrt(np.where(alive, variance, 1.0)), 0.0)
        largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=0)[None], axis=0)
        return cls(mean, directions * np.sign(largest) * gain)

    def __call__(self, features: NDArray[Any]) -> NDArray[np.float32]:
        """`(N, P)` to `(N, d)`."""
        blocks = _blocks(check_features(features))
        return np.concatenate([((rows - self.mean) @ self.projection).astype(np.float32) for rows in blocks])


def whiten(features: NDArray[Any], dim: int = 128) -> NDArray[np.float32]:
    """Project on the leading principal directions and scale each to unit variance.

    Directions whose variance is below 1e-6 of the largest become columns of zeros: scaled up they would be noise.
    The sign of a direction is fixed by its largest component, which is positive.

    Args:
        features: `(N, P)`.
        dim: Directions to keep, from the one of largest variance downwards.

    Returns:
        `(N, min(dim, P))`: zero mean, and identity covariance (over N - 1) on the columns that are not zero.

    Raises:
        ClusteringError: Unusable features, or `dim < 1`.
    """
    return Whitening.fit(features, dim)(features)


def l2_normalize(features: NDArray[Any]) -> NDArray[np.float32]:
    """Scale each row of `(N, d)` to length 1; rows of zeros stay."""
    points = np.asarray(features, dtype=np.float32)
    # in double precision: float32 squares of small rows would vanish
    length = np.sqrt(np.einsum("ij,ij->i", points, points, dtype=np.float64))
    unit: NDArray[np.float32] = (points / np.where(length > 0, length, 1.0)[:, None]).astype(np.float32)
    return unit


def prepare(features: NDArray[Any], dim: int = 128) -> NDArray[np.float32]:
    """What is clustered: `(N, P)` vectors reduced to `(N, min(dim, P))`, whitened, of length 1."""
    return l2_normalize(whiten(features, dim))


def scatter(points: NDArray[np.float32], centre: NDArray[np.float64] | float = 0.0) -> NDArray[np.float64]:
    """Sum over the rows of `(x - centre)(x - centre)ᵀ`, `(P, P)`, in double precision."""
    total = np.zeros((points.shape[1], points.shape[1]))
    for rows in _blocks(points):
        centred = rows - centre
        total += centred.T @ centred
    return total


def _blocks(points: NDArray[np.float32]) -> Iterator[NDArray[np.float64]]:
    """Rows in double precision, a block at a time: a whole copy of a large set would be several GB."""
    for start in range(0, len(points), _ROWS_AT_ONCE):
        yield points[start : start + _ROWS_AT_ONCE].astype(np.float64)

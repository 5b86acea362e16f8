"""PCA, whitening and unit length: what is done to the vectors before they are clustered (paper, section 3.2).

Everything passes over blocks of rows, in double precision: of vectors in a memory map no more than a block is copied.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decar.clustering.base import ROWS_AT_ONCE, check_table, require_at_least_one, row_blocks
from decar.errors import ClusteringError

_ROWS_AT_ONCE = ROWS_AT_ONCE
CLIPS_PER_DIM = 30  # measured: docs/recipe.md, "How many whitened dimensions"
LEAST_DIM = 4  # best for 30 to 150 clips


def affordable_dim(n: int, dim: int = 128) -> int:
    """How many of `dim` principal directions `N` points can whiten: one per 30 points, or up to 4 of fewer points.

    Whitening scales a direction of sampling noise up as much as any other. With `N <= dim + 1` nothing else is left:
    all pairwise cosines of the whitened points are -1 / (N - 1). The paper's 128 need 3,840 points.

    >>> [affordable_dim(n) for n in (8, 45, 470, 1_991, 3_840, 100_000)]
    [2, 4, 15, 66, 128, 128]
    """
    require_at_least_one(dim=dim)
    return min(dim, max(n // CLIPS_PER_DIM, min(LEAST_DIM, 1 + n // 5)))


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
        points = check_table(features)
        return cls.fit_exactly(points, affordable_dim(len(points), dim))

    @classmethod
    def fit_exactly(cls, features: NDArray[Any], dim: int) -> "Whitening":
        """As `fit`, but with `min(dim, P)` directions however few the points are."""
        require_at_least_one(dim=dim)
        points = check_table(features)
        mean = _mean(points)
        variance, directions = _principal(points, mean, min(dim, points.shape[1]))
        alive = variance > 1e-6 * variance[0]
        gain = np.where(alive, 1 / np.sqrt(np.where(alive, variance, 1.0)), 0.0)
        largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=0)[None], axis=0)
        return cls(mean, directions * np.sign(largest) * gain)

    def __call__(self, features: NDArray[Any], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """`(N, P)` to `(N, d)`, into `out` where it is given: an array or a memory map."""
        return self._write(features, out, unit=False)

    def unit(self, features: NDArray[Any], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """As a call, with each row scaled to length 1."""
        return self._write(features, out, unit=True)

    def _write(self, features: NDArray[Any], out: NDArray[np.float32] | None, *, unit: bool) -> NDArray[np.float32]:
        points = check_table(features)
        shape = len(points), self.projection.shape[1]
        if out is None:
            out = np.empty(shape, np.float32)
        if out.shape != shape or out.dtype != np.float32:
            raise ClusteringError(
                f"whitened vectors are {shape} float32, out is {out.shape} {out.dtype}: give one that fits"
            )
        for rows, block in _blocks(points):
            block -= self.mean
            white = (block @ self.projection).astype(np.float32)
            out[rows] = l2_normalize(white) if unit else white
        return out


def whiten(features: NDArray[Any], dim: int = 128) -> NDArray[np.float32]:
    """Project on the leading principal directions and scale each to unit variance.

    Directions whose variance is below 1e-6 of the largest become columns of zeros: scaled up they would be noise.
    The sign of a direction is fixed by its largest component, which is positive.

    Args:
        features: `(N, P)`.
        dim: Directions to keep at most, from the one of largest variance downwards. Fewer than 30 dim points get fewer,
            see `affordable_dim`.

    Returns:
        `(N, min(affordable_dim(N, dim), P))`: zero mean, and identity covariance (over N - 1) on the columns that are
        not zero.

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


def prepare(features: NDArray[Any], dim: int = 128, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """What is clustered: `(N, P)` vectors reduced by `whiten`, each scaled to length 1.

    Args:
        features: In memory or in a memory map, which is never copied.
        dim: As of `whiten`.
        out: Where the rows are written, such as `numpy.lib.format.open_memmap(...)`; None: a new array.
    """
    return Whitening.fit(features, dim).unit(features, out)


def scatter(points: NDArray[Any], centre: NDArray[np.float64] | float = 0.0) -> NDArray[np.float64]:
    """Sum over the rows of `(x - centre)(x - centre)ᵀ`, `(P, P)`, in double precision."""
    total = np.zeros((points.shape[1], points.shape[1]))
    for _, block in _blocks(points):
        block -= centre
        total += block.T @ block
    return total


def _principal(
    points: NDArray[Any], mean: NDArray[np.float64], dim: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The `dim` leading eigenvalues `(dim,)` of the covariance, largest first, and its eigenvectors `(P, dim)`.

    Of fewer points than dimensions they come from the `N × N` products of the points: 12 embeddings of 3,072 numbers
    take milliseconds, by their covariance five seconds on one core. Where `N < dim` the rest are zeros.
    """
    n, wide = points.shape
    if n >= wide:
        variance, directions = np.linalg.eigh(scatter(points, mean) / max(n - 1, 1))  # ascending
        return variance[::-1][:dim], directions[:, ::-1][:, :dim]
    centred = points.astype(np.float32).astype(np.float64) - mean
    squared, weights = np.linalg.eigh(centred @ centred.T)
    squared, weights = np.clip(squared[::-1][:dim], 0.0, None), weights[:, ::-1][:, :dim]
    length = np.sqrt(squared)
    variance, directions = np.zeros(dim), np.zeros((wide, dim))
    variance[: len(squared)] = squared / max(n - 1, 1)
    directions[:, : len(squared)] = centred.T @ (weights / np.where(length > 0, length, np.inf))
    return variance, directions


def _mean(points: NDArray[Any]) -> NDArray[np.float64]:
    """Mean of the rows: a running sum, so blocks do not change a bit of it."""
    total = np.zeros(points.shape[1])
    for _, block in _blocks(points):
        block[0] += total
        total = np.add.reduce(block, axis=0)
    return total / len(points)


def _blocks(points: NDArray[Any]) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Rows and a copy of them in double precision, whose numbers are those of float32; a block at a time."""
    for rows in row_blocks(len(points), _ROWS_AT_ONCE):
        yield rows, points[rows].astype(np.float32).astype(np.float64)

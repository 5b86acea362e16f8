"""What every clusterer is: features in, an `Assignment` out, nothing remembered in between."""

import logging
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from decar.errors import ClusteringError

log = logging.getLogger(__name__)

IN_MEMORY = 2**30  # bytes of vectors; more go to a file, whose pages the system can drop when memory is short
ROWS_AT_ONCE = 65_536
_QUERIES_AT_ONCE = 4096  # faiss takes so many itself


@dataclass(frozen=True)
class Assignment:
    """The clusters of `N` points.

    Attributes:
        labels: `(N,)` int64, each in `[0, n_clusters)`.
        n_clusters: Numbers that labels can take; K-Means may leave some of them without a point.
        objective: Mean squared distance of a point to the centre of its cluster; lower is tighter.
    """

    labels: NDArray[np.int64]
    n_clusters: int
    objective: float


class Clusterer(Protocol):
    """Stores its options only; `fit_predict` is a pure function of them and of the features."""

    @property
    def seed(self) -> int:
        """Seed of whatever is random in it."""
        ...

    def with_seed(self, seed: int) -> "Clusterer":
        """The same clusterer with another seed."""
        ...

    def fit_predict(self, features: NDArray[Any]) -> Assignment:
        """Cluster `(N, d)` features; raises `ClusteringError` when they or the options make no sense."""
        ...


def row_blocks(n: int, size: int = ROWS_AT_ONCE, *, least: int = 1) -> Iterator[slice]:
    """Slices of at most `size` rows that cover `n`; the last is longer where less than `least` would be left over."""
    start = 0
    while start < n:
        stop = start + size if n - start - size >= least else n
        yield slice(start, stop)
        start = stop


def room(n: int, dim: int, folder: Path | None = None) -> NDArray[np.float32]:
    """An array `(n, dim)` to fill: in memory or, above 1 GiB, in a file without a name.

    The file lies in `folder`, else in the system's temporary folder; it is gone with the array. Its space is reserved
    at once, since a memory map that meets a full disk later kills the process.
    """
    size = 4 * n * dim
    if size <= IN_MEMORY:
        return np.empty((n, dim), np.float32)
    for place in (folder, None):
        try:
            with tempfile.TemporaryFile(dir=place) as file:
                os.posix_fallocate(file.fileno(), 0, size)
                return np.memmap(file, np.float32, "r+", shape=(n, dim))
        except (OSError, AttributeError) as error:  # the second: a system without posix_fallocate
            reason = error
    log.warning("%.1f GB of vectors stay in memory: no room for them on disk (%s)", size / 1e9, reason)
    return np.empty((n, dim), np.float32)


def query_blocks(n: int, size: int = ROWS_AT_ONCE) -> Iterator[slice]:
    """Blocks in which faiss finds, to the bit, what it finds in one call over all: multiples of its own."""
    return row_blocks(n, size, least=_QUERIES_AT_ONCE)


def check_table(features: NDArray[Any]) -> NDArray[Any]:
    """Refuse what cannot be clustered; a block of rows at a time, so that of a memory map nothing is kept.

    Returns:
        The features `(N, d)` as they are, in whatever type and layout.

    Raises:
        ClusteringError: Not two-dimensional, empty, or holding values of which no float32 distance can be taken.
    """
    table = np.asarray(features)
    if table.ndim != 2 or table.size == 0:
        raise ClusteringError(
            f"features must be a table (N, d) with N, d >= 1, found shape {table.shape}: give one row a clip"
        )
    bad = not_finite(table, reach=4)  # two points are at most twice the longest vector apart
    if len(bad):
        what = "a value too large to square in float32" if np.isfinite(_float32(table[bad[0]])).all() else "NaN or Inf"
        raise ClusteringError(
            f"row {bad[0]} of the features holds {what} ({len(bad)} such rows): leave these clips out"
        )
    return table


def not_finite(table: NDArray[Any], reach: float = 1.0) -> NDArray[np.int64]:
    """Rows of `(N, d)` whose squared length, times `reach`, is no number in float32."""
    found = [np.empty(0, np.int64)]
    for rows in row_blocks(len(table)):
        block = _float32(table[rows])
        with np.errstate(over="ignore", invalid="ignore"):
            norms = np.einsum("ij,ij->i", block, block)
            found.append(rows.start + np.flatnonzero(~np.isfinite(reach * norms)))
    return np.concatenate(found)


def check_features(features: NDArray[Any]) -> NDArray[np.float32]:
    """Return features as a C-contiguous float32 array `(N, d)`, the input itself where it is one already.

    faiss takes nothing else: any other type or layout is copied whole, a memory map of float32 rows is not.

    Raises:
        ClusteringError: As of `check_table`.
    """
    return _float32(check_table(features))


def _float32(values: NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # what does not fit becomes Inf, and is refused by row
        return np.ascontiguousarray(values, dtype=np.float32)


def require_at_least_one(**options: int) -> None:
    """Refuse options below 1 by name."""
    for name, value in options.items():
        if value < 1:
            raise ClusteringError(f"{name}={value} makes no sense: give 1 or more")

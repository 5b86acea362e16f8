"""What every clusterer is: features in, an `Assignment` out, nothing remembered in between."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from decar.errors import ClusteringError


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


def check_features(features: NDArray[Any]) -> NDArray[np.float32]:
    """Return features as a C-contiguous float32 array `(N, d)`, the input itself where it is one already.

    Raises:
        ClusteringError: Not two-dimensional, empty, or holding values of which no float32 distance can be taken.
    """
    with np.errstate(over="ignore"):  # what does not fit becomes Inf and is refused by row below
        array: NDArray[np.float32] = np.ascontiguousarray(features, dtype=np.float32)
        if np.ndim(features) != 2 or array.size == 0:
            found = np.shape(features)
            raise ClusteringError(
                f"features must be a table (N, d) with N, d >= 1, found shape {found}: give one row a clip"
            )
        norms = np.einsum("ij,ij->i", array, array)
        bad = np.flatnonzero(~np.isfinite(4 * norms))  # two points are at most twice the longest vector apart
    if len(bad):
        what = "a value too large to square in float32" if np.isfinite(array[bad[0]]).all() else "NaN or Inf"
        raise ClusteringError(
            f"row {bad[0]} of the features holds {what} ({len(bad)} such rows): leave these clips out"
        )
    return array


def require_at_least_one(**options: int) -> None:
    """Refuse options below 1 by name."""
    for name, value in options.items():
        if value < 1:
            raise ClusteringError(f"{name}={value} makes no sense: give 1 or more")

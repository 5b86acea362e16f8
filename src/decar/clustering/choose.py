"""How many clusters: the smallest number of which the silhouette is nearly as good as of any that is plausible.

The silhouette alone is not enough. Of recordings with a common background it prefers two or three clusters, indoors and
outdoors say; and it often rises up to one cluster for each few clips. So k is sought around sqrt(N / 2): of the rules
that were tried this agrees best with the known kinds of 26 sets of real sounds (docs/cluster.md has the table).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decar.clustering.base import check_features
from decar.clustering.kmeans import KMeans

STEPS = np.exp2(np.arange(-4, 5) / 4)  # of k, as factors of sqrt(N / 2)
NEARLY = 0.95  # of the best silhouette
AT_ONCE = 5_000  # points that the silhouette is computed of: all their distances are


def plausible(n: int) -> list[int]:
    """Numbers of clusters for `N` points, rising: from half of sqrt(N / 2) to twice as many; at least 2, below `N`.

    >>> plausible(200), plausible(3)
    ([5, 6, 7, 8, 10, 12, 14, 17, 20], [2])
    """
    found = np.unique((np.sqrt(n / 2) * STEPS).round().astype(int).clip(2, max(n - 1, 2)))
    return [int(k) for k in found]


def choose_k(
    features: NDArray[Any], seed: int = 0, advance: Callable[[int], object] = lambda _: None, n: int | None = None
) -> int:
    """The number of clusters for K-Means of `(N, d)` whitened vectors of length 1.

    Args:
        features: The vectors, or a sample of them.
        seed: Of K-Means, and of the points that the silhouette is computed of.
        advance: Called with 1 after each number that has been tried.
        n: `N` of a sample: which numbers are plausible depends on all points.

    Returns:
        The smallest of the `plausible` numbers with at least 95 % of the best silhouette among them.
    """
    points = check_features(features)
    scores: dict[int, float] = {}
    for k in [k for k in plausible(n or len(points)) if k < len(points)] or plausible(len(points)):
        scores[k] = silhouette(points, KMeans(k, n_init="auto", seed=seed).fit_predict(points).labels, seed)
        advance(1)
    return smallest_nearly_best(scores)


def smallest_nearly_best(scores: dict[int, float]) -> int:
    """The smallest k whose score is at least 95 % of the best; where none is positive, the k of the best.

    >>> smallest_nearly_best({2: 0.1, 4: 0.39, 8: 0.4}), smallest_nearly_best({2: -0.3, 4: -0.1})
    (4, 4)
    """
    best = max(scores.values())
    if best <= 0:
        return max(scores, key=scores.__getitem__)
    return min(k for k, score in scores.items() if score >= NEARLY * best)


def silhouette(points: NDArray[np.float32], labels: NDArray[np.int64], seed: int = 0) -> float:
    """Mean silhouette (Rousseeuw, 1987) by Euclidean distance, of at most 5,000 points; -1.0 for a single cluster."""
    from sklearn.metrics import silhouette_score

    if len(points) > AT_ONCE:
        some = np.random.default_rng(seed).choice(len(points), AT_ONCE, replace=False)
        points, labels = points[some], labels[some]
    if not 2 <= len(np.unique(labels)) < len(points):
        return -1.0
    return float(silhouette_score(points, labels))

"""Which clips to label next: those that a classifier is unsure of, and that are unlike one another.

Letters: `N` clips, `D` numbers of an embedding, `C` labels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from decar.downstream.classifier import Classifier, margins
from decar.models.embed import half_standardised

POOL = 5  # times as many unsure clips as are suggested; those of them that are farthest apart are taken

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]


def suggest(vectors: Floats, labelled: Rows, classifier: Classifier | None = None, n: int = 20, seed: int = 0) -> Rows:
    """Rows of `n` clips to label next, the most useful first.

    Without a classifier they are typical clips: those nearest to the centres of `n` clusters. With one, of the `5 n`
    clips that it is least sure of those are taken one by one that are farthest from all labelled and taken ones.

    Args:
        vectors: `(N, D)` embeddings of all clips.
        labelled: Rows that have a label already.
        classifier: What the labels have taught so far.
        n: How many; fewer where there are fewer clips.
        seed: Of the clusters.
    """
    left = np.setdiff1d(np.arange(len(vectors)), labelled)
    if len(left) <= n:
        return left
    unit = half_standardised(vectors)
    if classifier is None:
        return left[_typical(unit[left], n, seed)]
    unsure = doubt(margins(classifier.scores(vectors[left]), classifier.thresholds))
    pool = left[np.argsort(unsure, kind="stable")[: POOL * n]]
    return _apart(unit, labelled, pool, n)


def doubt(margin: NDArray[np.float64]) -> NDArray[np.float64]:
    """`(N,)`, the smaller the less sure: how far the best label is above the next, or a single one from its threshold.

    >>> doubt(np.array([[2.0, 1.5, -3.0], [4.0, -4.0, -4.0]]))
    array([0.5, 8. ])
    """
    if margin.shape[1] == 1:
        return np.asarray(np.abs(margin[:, 0]))
    best = np.sort(margin, axis=1)
    return np.asarray(best[:, -1] - best[:, -2])


def _typical(unit: Floats, n: int, seed: int) -> Rows:
    """The row nearest to the mean of each of `n` clusters, the largest cluster first."""
    fitted = KMeans(n, n_init=3, random_state=seed).fit(unit)
    far = np.linalg.norm(unit - fitted.cluster_centers_[fitted.labels_], axis=1)
    order = np.argsort(-np.bincount(fitted.labels_, minlength=n), kind="stable")
    members = (np.flatnonzero(fitted.labels_ == cluster) for cluster in order)
    return np.array([rows[far[rows].argmin()] for rows in members if len(rows)])


def _apart(unit: Floats, given: Rows, pool: Rows, n: int) -> Rows:
    """`n` of `pool`, each the farthest by cosine from what is given and taken before; of nothing the first."""
    distance = np.full(len(pool), np.inf) if not len(given) else (1 - unit[pool] @ unit[given].T).min(axis=1)
    taken = list[int]()
    for _ in range(min(n, len(pool))):
        place = int(distance.argmax())
        taken.append(place)
        distance = np.minimum(distance, 1 - unit[pool] @ unit[pool[place]])
        distance[taken] = -1.0
    return pool[taken]

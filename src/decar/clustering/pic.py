"""Power Iteration Clustering on a nearest-neighbour graph; the number of clusters comes out of the data.

Lin and Cohen, *Power Iteration Clustering* (ICML 2010), in the form of DeepCluster (Caron et al., ECCV 2018), which
DECAR's released code takes over: clusters are the local maxima of the vector that a damped power iteration ends in.
Everything is sparse and in arrays and linear in N; no loop runs over points, only over blocks of them.

Weights, power iteration and climb are in float64, as in the released code. With its sigma of 0.2 the weight of two
whitened unit vectors, exp(-d²/0.04), is some 1e-13 and its share of `v` 1e-16, the rounding error of float64: there the
last bit decides which points stand out. In float32 none does: each of 600 random 48-d unit vectors is a local maximum,
where float64 has 45.
"""

from __future__ import annotations  # scipy's sparse arrays take a type in brackets only for the type checker

import logging
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from decar.clustering.approximate import approximate_neighbours
from decar.clustering.base import Assignment, check_features, require_at_least_one, row_blocks
from decar.clustering.nearest import gpu_index, nearest_neighbours
from decar.errors import ClusteringError

log = logging.getLogger(__name__)

EXACT_UP_TO = 100_000  # points; comparing all takes a quarter of a minute on two cores, 100 times that at a million
EXACT_UP_TO_ON_GPU = 1_000_000  # as many as a GPU of 30 TFLOPS compares in some ten seconds; not measured
_COLUMNS_AT_ONCE = 16


@dataclass(frozen=True)
class PIC:
    """Power Iteration Clustering; deterministic, on any number of threads of one kind of processor.

    Attributes:
        n_neighbors: Neighbours of a point in the graph.
        sigma: Width of the kernel exp(-d²/sigma²), in units of distance; `auto` is the median distance to a neighbour.
            It hardly moves the number of clusters. That is the method: `v` follows the degrees of the graph, and each
            hub is a local maximum, so their number grows with N at a fixed `n_neighbors`. Of 12 clean blobs of 50, 100,
            500 points it makes 24, 35, 106 clusters (`auto`) and 24, 35, 100 (0.2); with 45 neighbours 12, 12, 16.
        alpha: Weight of the graph against the uniform vector in each power iteration, between 0 and 1.
        n_iter: Power iterations.
        seed: Of the cells of the approximate search; the exact one has nothing random in it.
        gpu: Search exact neighbours on the GPU; see `gpu_index`. Approximate ones come from the CPU.
        n_threads: Threads of the search on the CPU; None leaves faiss's own number.
        neighbors: `exact` compares every point with every other, `approximate` with those of nearby cells
            (`approximate.py`). `auto` is exact up to 100,000 points (on a GPU 1,000,000), then approximate.

    >>> import numpy as np
    >>> PIC(n_neighbors=2).fit_predict(np.array([[0.0], [0.1], [0.2], [9.0], [9.1], [9.2]])).labels.tolist()
    [0, 0, 0, 1, 1, 1]
    """

    n_neighbors: int = 5
    sigma: float | Literal["auto"] = 0.2
    alpha: float = 0.001
    n_iter: int = 200
    seed: int = 0
    gpu: bool | Literal["auto"] = "auto"
    n_threads: int | None = None
    neighbors: Literal["auto", "exact", "approximate"] = "auto"

    def with_seed(self, seed: int) -> PIC:
        """The same clusterer with another seed."""
        return replace(self, seed=seed)

    def fit_predict(self, features: NDArray[Any]) -> Assignment:
        """Cluster `(N, d)` features.

        Raises:
            ClusteringError: Unusable features or options, `N <= n_neighbors`, or faiss (or the GPU asked for) missing.
        """
        self._check_options()
        points = check_features(features)
        if len(points) <= self.n_neighbors:
            raise ClusteringError(
                f"n_neighbors={self.n_neighbors} needs more clips than {len(points)}: lower it or add sounds"
            )
        neighbours, squared = self.search(points)
        sigma = median_distance(squared) if self.sigma == "auto" else float(self.sigma)
        graph = affinity(neighbours, squared, sigma)
        labels = climb(graph, power_iteration(graph, self.alpha, self.n_iter))
        labels, n_clusters = merge_singletons(labels, neighbours)
        if n_clusters > len(points) // 2:
            log.warning(
                "PIC found %d clusters in %d clips: sigma=%.3g is narrow for neighbours %.3g apart; try sigma=auto",
                *(n_clusters, len(points), sigma, median_distance(squared)),
            )
        return Assignment(labels, n_clusters, _mean_squared_radius(points, labels))

    def search(self, points: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Neighbours of `(N, d)` points and squared distances to them, each `(N, n_neighbors)`."""
        if self.is_exact(len(points), gpu_index(self.gpu) is not None):
            return nearest_neighbours(points, self.n_neighbors, gpu=self.gpu, n_threads=self.n_threads)
        return approximate_neighbours(points, self.n_neighbors, seed=self.seed, n_threads=self.n_threads)

    def is_exact(self, n: int, gpu: bool = False) -> bool:
        """Whether `n` points are all compared with one another."""
        affordable = n <= (EXACT_UP_TO_ON_GPU if gpu else EXACT_UP_TO)
        return self.neighbors == "exact" or (self.neighbors == "auto" and affordable)

    def _check_options(self) -> None:
        require_at_least_one(n_neighbors=self.n_neighbors, n_iter=self.n_iter)
        if self.sigma != "auto" and not (isinstance(self.sigma, int | float) and 0 < self.sigma < np.inf):
            raise ClusteringError(f"sigma={self.sigma} makes no sense: give a number above 0, or auto")
        if not 0 < self.alpha < 1:
            raise ClusteringError(f"alpha={self.alpha} makes no sense: give a number between 0 and 1")
        if self.neighbors not in ("auto", "exact", "approximate"):
            raise ClusteringError(f"neighbors={self.neighbors} makes no sense: give auto, exact or approximate")


def median_distance(squared: NDArray[np.float32]) -> float:
    """Median distance to a neighbour; of those apart when most are duplicates, 1.0 when all are: any width will do."""
    apart = squared[squared > 0]
    if not len(apart):
        return 1.0
    return float(np.median(np.sqrt(squared)) or np.median(np.sqrt(apart)))


def affinity(neighbours: NDArray[np.int64], squared: NDArray[np.float32], sigma: float) -> sparse.csr_array[np.float64]:
    """Symmetric graph `W = A + Aᵀ`, `A_ij = exp(-d²_ij / sigma²)` for the neighbours j of i; rows sorted by column.

    Args:
        neighbours: `(N, n)` indices.
        squared: `(N, n)` squared distances; the kernel takes them as they are (the released code has sigma² = 0.04).
        sigma: Width.
    """
    n_points, n = neighbours.shape
    width = max(sigma**2, float(np.finfo(np.float64).tiny))
    with np.errstate(over="ignore", under="ignore"):  # far neighbours have weight 0
        weights = np.exp(squared.astype(np.float64) / -width)
    starts = np.arange(0, n_points * n + 1, n)
    directed = sparse.csr_array((weights.ravel(), neighbours.ravel(), starts), shape=(n_points, n_points))
    graph: sparse.csr_array[np.float64] = (directed + directed.T).tocsr()
    graph.sort_indices()
    return graph


def power_iteration(graph: sparse.csr_array[np.float64], alpha: float, n_iter: int) -> NDArray[np.float64]:
    """`v ← alpha Wᵀ v + (1 - alpha) / N`, scaled to sum 1, `n_iter` times from the uniform vector.

    Args:
        graph: Symmetric `W` `(N, N)`.
        alpha: Weight of the graph.
        n_iter: Steps.

    Returns:
        `v` `(N,)`, high in the dense parts of the graph.
    """
    n_points = graph.shape[0]
    uniform = (1 - alpha) / n_points
    v = np.full(n_points, 1 / n_points)
    for _ in range(n_iter):
        before, v = v, alpha * (graph @ v) + uniform  # W is symmetric
        v /= v.sum()
        if np.array_equal(v, before):  # it stays where it is in all further steps
            break
    return v


def climb(graph: sparse.csr_array[np.float64], v: NDArray[np.float64]) -> NDArray[np.int64]:
    """Walk every point uphill on `v` to a local maximum; those who meet there are one cluster.

    A point steps to the neighbour of largest `W_ij (v_j - v_i)`, the first in its row among equals, and stays where
    none is positive. Each step goes strictly up, so there are no cycles; pointers to pointers end after log N rounds.

    Returns:
        Labels `(N,)`, 0 to the number of local maxima - 1.
    """
    target = np.arange(graph.shape[0])
    for rows in row_blocks(len(target)):
        edges = slice(graph.indptr[rows.start], graph.indptr[rows.stop])
        degree = np.diff(graph.indptr[rows.start : rows.stop + 1])
        row, column = np.repeat(np.arange(rows.start, rows.stop), degree), graph.indices[edges]
        gain = graph.data[edges] * (v[column] - v[row])
        degree = degree[degree > 0]
        best = np.maximum.reduceat(gain, np.cumsum(degree) - degree) if len(gain) else gain
        steps = np.flatnonzero((gain > 0) & (gain == np.repeat(best, degree)))[::-1]
        target[row[steps]] = column[steps]  # backwards: of equals the first is written last, and stays
    while not np.array_equal(further := target[target], target):
        target = further
    return _compact(target)


def merge_singletons(labels: NDArray[np.int64], neighbours: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """Give each cluster of one point to the cluster of its nearest neighbour that is not alone; without such it stays.

    Returns:
        New labels `(N,)` without gaps, and the number of clusters.
    """
    alone = np.bincount(labels)[labels] == 1
    company = ~alone[neighbours]
    movers = np.flatnonzero(alone & company.any(axis=1))
    hosts = neighbours[movers, company[movers].argmax(axis=1)]
    merged = labels.copy()
    merged[movers] = labels[hosts]
    merged = _compact(merged)
    return merged, int(merged.max()) + 1


def _compact(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same order of labels `(N,)` without gaps, from 0."""
    occurs = np.bincount(labels) > 0
    number: NDArray[np.int64] = np.cumsum(occurs) - 1
    return number[labels]


def _mean_squared_radius(points: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Mean squared distance of a point to the mean of its cluster: what K-Means calls its objective."""
    members = sparse.csr_array((np.ones(len(labels)), labels, np.arange(len(labels) + 1))).T.tocsr()
    sizes, total = np.bincount(labels)[:, None], 0.0
    for start in range(0, points.shape[1], _COLUMNS_AT_ONCE):  # bounds memory: the points in double precision
        difference = points[:, start : start + _COLUMNS_AT_ONCE].astype(np.float64)
        difference -= (np.asarray(members @ difference) / sizes)[labels]
        total += float(np.einsum("ij,ij->", difference, difference))
    return total / len(points)

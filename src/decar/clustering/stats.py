"""What is measured of labels and of vectors: NMI, cluster sizes, entropy, effective rank."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from decar.clustering.base import check_table
from decar.clustering.whiten import scatter
from decar.errors import ClusteringError


def nmi(a: ArrayLike, b: ArrayLike) -> float:
    """Normalised mutual information of two labellings, `I(a; b) / sqrt(H(a) H(b))` (paper, Eq. 3).

    Args:
        a: `(N,)` labels; any integers or strings, since only what is together matters.
        b: `(N,)` labels of the same points.

    Returns:
        0 (independent) to 1 (the same up to renaming). 0.0 where either has a single cluster: its entropy and the
        mutual information are zero, so Eq. 3 is 0/0. scikit-learn returns 1.0 when both have one, which would make
        two collapsed assignments look like perfect agreement, and a sweep would choose them.

    Raises:
        ClusteringError: Labels are not two lists of one length, or are empty.

    >>> nmi([0, 0, 1, 1], [7, 7, 3, 3]), nmi([0, 0, 1, 1], [0, 1, 0, 1])
    (1.0, 0.0)
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.ndim != 1 or a.shape != b.shape or not len(a):
        raise ClusteringError(f"nmi needs two lists of labels of the same points, found shapes {a.shape} and {b.shape}")
    rows, columns = (np.unique(labels, return_inverse=True)[1].reshape(-1) for labels in (a, b))
    joint = sparse.coo_array((np.full(len(a), 1.0), (rows, columns))).tocsr().tocoo()  # sums duplicates
    count_a, count_b = np.bincount(rows), np.bincount(columns)
    if len(count_a) == 1 or len(count_b) == 1:
        return 0.0
    independent = count_a[joint.row] / len(a) * count_b[joint.col]
    information = joint.data @ np.log(joint.data / independent) / len(a)
    return float(np.clip(information / np.sqrt(_entropy(count_a) * _entropy(count_b)), 0.0, 1.0))


def cluster_sizes(labels: NDArray[np.int64], n_clusters: int) -> NDArray[np.int64]:
    """Points in each cluster, `(n_clusters,)`; 0 for empty ones."""
    return np.bincount(labels, minlength=n_clusters)


def entropy(labels: NDArray[np.int64], n_clusters: int) -> float:
    """Evenness of the cluster sizes: their entropy divided by ln(number of non-empty clusters).

    Returns:
        1.0 when all non-empty clusters are of one size, towards 0 as one swallows the rest; 0.0 when there is only one.
        Empty clusters do not count: look at their number beside this.
    """
    sizes = cluster_sizes(labels, n_clusters)
    sizes = sizes[sizes > 0]
    return _entropy(sizes) / float(np.log(len(sizes))) if len(sizes) > 1 else 0.0


def effective_rank(features: NDArray[Any]) -> float:
    """How many dimensions `(N, d)` features really use: exp of the entropy of their singular values, scaled to sum 1.

    Roy and Vetterli, *The effective rank* (EUSIPCO 2007), on the features as they are, not centred.

    Returns:
        1.0 (all on one line) to `min(N, d)` (all directions alike); 0.0 when all features are zero.
    """
    table = check_table(features)
    # the same squares from either side; 1,000 vectors of 3,072 numbers: a twentieth of the time by rows
    with threadpool_limits(1):  # with more threads the last bits differ, and a resumed run would have other figures
        products = scatter(table.T if len(table) < table.shape[1] else table)
        squares = np.linalg.eigvalsh(products)
    values = np.sqrt(np.clip(squares, 0.0, None))
    values = values[values > 1e-7 * values[-1]]  # the others are rounding of the squares
    return float(np.exp(_entropy(values))) if len(values) else 0.0


def _entropy(weights: NDArray[Any]) -> float:
    """Entropy in nats of positive weights, scaled to sum 1."""
    share = weights / weights.sum()
    return float(-(share @ np.log(share)))

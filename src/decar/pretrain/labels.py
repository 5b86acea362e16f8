"""Where the `(N, H)` pseudo-labels of an epoch come from: here, from the network's own vectors, clustered `H` times."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from decar.clustering import Clusterer, nmi, prepare
from decar.clustering.stats import cluster_sizes, effective_rank, entropy
from decar.pretrain.sampler import Stream, derive_seed


@dataclass(frozen=True)
class EpochLabels:
    """The pseudo-labels that one epoch is trained on.

    Attributes:
        labels: `(N, H)` int64, one column a clustering.
        sizes: Number of clusters of each clustering: the widths of the heads.
        epoch: The epoch they were made for.
        health: What is logged of them: numbers of clusters, entropy, effective rank, and NMI to those before.
    """

    labels: NDArray[np.int64]
    sizes: list[int]
    epoch: int
    health: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class NetworkLabels:
    """Cluster the vectors `z` of the whole set (paper: one clustering, every epoch; sections 3.1 and 3.2).

    Attributes:
        clusterers: One a head; the paper has one.
        dim: `z` is reduced to this many PCA-whitened dimensions, then L2-normalised.
    """

    clusterers: Sequence[Clusterer]
    dim: int = 128

    def assign(
        self, features: NDArray[np.float32], *, epoch: int, seed: int, previous: EpochLabels | None = None
    ) -> EpochLabels:
        """Labels of an epoch from `features` `(N, P)`; the clusterers are seeded by `(seed, epoch, h)`."""
        prepared = prepare(features, self.dim)
        found = [
            clusterer.with_seed(derive_seed(Stream.CLUSTERS, seed, epoch, h) % 2**31).fit_predict(prepared)
            for h, clusterer in enumerate(self.clusterers)
        ]
        labels = np.stack([assignment.labels for assignment in found], axis=1)
        sizes = [assignment.n_clusters for assignment in found]
        health = {
            "n_clusters": float(np.mean([np.count_nonzero(cluster_sizes(a.labels, a.n_clusters)) for a in found])),
            "entropy": float(np.mean([entropy(a.labels, a.n_clusters) for a in found])),
            "effective_rank": effective_rank(features),
            "nmi": _mean_nmi(labels, previous),
        }
        return EpochLabels(labels, sizes, epoch, health)


def _mean_nmi(labels: NDArray[np.int64], previous: EpochLabels | None) -> float:
    """NMI to the assignment before (Eq. 3), mean over the clusterings; 0.0 in the first epoch, which has none."""
    if previous is None or previous.labels.shape != labels.shape:
        return 0.0
    return float(np.mean([nmi(a, b) for a, b in zip(previous.labels.T, labels.T, strict=True)]))

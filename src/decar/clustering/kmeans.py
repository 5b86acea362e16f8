"""K-Means by faiss, on every point (paper, section 3.2; k = 256, 512, 1024)."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from decar.clustering.base import Assignment, check_features, require_at_least_one
from decar.clustering.nearest import faiss_threads, use_gpu
from decar.errors import ClusteringError


@dataclass(frozen=True)
class KMeans:
    """K-Means from random points. On the CPU the same seed gives the same labels on any number of threads.

    Attributes:
        k: Clusters; some may end up empty.
        n_iter: Lloyd iterations (20 in the released code).
        seed: Chooses the first centres.
        gpu: `auto` takes the GPU when faiss sees one.
        n_threads: Threads on the CPU; None leaves faiss's own number.

    >>> import numpy as np
    >>> KMeans(k=2).fit_predict(np.array([[0.0], [0.1], [9.0]])).n_clusters
    2
    """

    k: int = 512
    n_iter: int = 20
    seed: int = 0
    gpu: bool | Literal["auto"] = "auto"
    n_threads: int | None = None

    def with_seed(self, seed: int) -> "KMeans":
        """The same clusterer with another seed."""
        return replace(self, seed=seed)

    def fit_predict(self, features: NDArray[Any]) -> Assignment:
        """Cluster `(N, d)` features by squared L2 distance.

        Raises:
            ClusteringError: Unusable features or options, `k > N`, or faiss (or the demanded GPU) is missing.
        """
        require_at_least_one(k=self.k, n_iter=self.n_iter)
        points = check_features(features)
        if self.k > len(points):
            raise ClusteringError(
                f"k={self.k} is larger than the number of clips ({len(points)}): lower k or add sounds"
            )
        with faiss_threads(self.n_threads) as faiss:
            kmeans = faiss.Kmeans(
                points.shape[1],
                self.k,
                niter=self.n_iter,
                seed=self.seed % 2**31,  # a C int in faiss
                gpu=use_gpu(self.gpu),
                verbose=False,
                min_points_per_centroid=1,
                max_points_per_centroid=len(points),  # its default of 256 would silently train on a sub-sample
            )
            kmeans.train(points)
            squared, labels = kmeans.assign(points)
        return Assignment(labels.astype(np.int64), self.k, float(squared.mean(dtype=np.float64)))

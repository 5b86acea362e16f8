"""K-Means by faiss or superkmeans, on every point (paper, section 3.2; k = 256, 512, 1024)."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from decar.clustering.base import Assignment, check_features, check_table, query_blocks, require_at_least_one
from decar.clustering.nearest import faiss_threads, flat_index
from decar.errors import ClusteringError

SMALL_SET = 1_000  # points
SMALL_SET_STARTS = 10


@dataclass(frozen=True)
class KMeans:
    """K-Means from random points. On the CPU the same seed gives the same labels on any number of threads.

    Attributes:
        k: Clusters; some may end up empty.
        n_iter: Lloyd iterations (20 in the released code).
        seed: Chooses the first centres.
        gpu: `auto` takes the GPU that this process trains on, if faiss sees it; see `gpu_index`.
        n_threads: Threads on the CPU; None leaves faiss's own number.
        max_points: Centres are learned from at most so many points, drawn by the seed; all points are assigned. None:
            from all. With several processes and more clips than this, vectors stay where they were made. `conf/`
            gives two million: up to there 20 iterations for 1024 centres take minutes on two cores.
        n_init: Starts, of which the one with the lowest objective is kept (one in the paper). `auto`: 10 for at most
            1,000 points, of which a single start often leaves a poor clustering (docs/recipe.md); otherwise one.
        superkmeans: Learn the centres by that library, on the CPU: Lloyd iterations as well, which leave out centres
            that partial distances rule out (arXiv 2603.20009). Three times as fast as faiss on one core.

    >>> import numpy as np
    >>> KMeans(k=2).fit_predict(np.array([[0.0], [0.1], [9.0]])).n_clusters
    2
    """

    k: int = 512
    n_iter: int = 20
    seed: int = 0
    gpu: bool | Literal["auto"] = "auto"
    n_threads: int | None = None
    max_points: int | None = None
    n_init: int | Literal["auto"] = 1
    superkmeans: bool = False

    def with_seed(self, seed: int) -> "KMeans":
        """The same clusterer with another seed."""
        return replace(self, seed=seed)

    def fit_predict(self, features: NDArray[Any]) -> Assignment:
        """Cluster `(N, d)` features by squared L2 distance.

        Raises:
            ClusteringError: Unusable features or options, `k > N`, or faiss (or the demanded GPU) is missing.
        """
        points = check_table(features)
        sample = self.sample(len(points))
        labels, squared = self.fit(points if sample is None else points[sample]).assign(points)
        return Assignment(labels, self.k, float(squared.mean(dtype=np.float64)))

    def sample(self, n: int) -> NDArray[np.int64] | None:
        """Which of `n` points centres are learned from, ascending; None: all."""
        if self.max_points is None or n <= self.max_points:
            return None
        require_at_least_one(max_points=self.max_points)
        return np.sort(np.random.default_rng(self.seed).choice(n, self.max_points, replace=False))

    def fit(self, features: NDArray[Any]) -> "Centres":
        """Learn centres from all of `(n, d)` features."""
        require_at_least_one(k=self.k, n_iter=self.n_iter)
        points = check_features(features)
        if self.k > len(points):
            raise ClusteringError(
                f"k={self.k} is larger than the number of clips ({len(points)}): lower k or add sounds"
            )
        centres = self._by_superkmeans(points) if self.superkmeans else self._by_faiss(points)
        return Centres(centres, self.gpu, self.n_threads)

    def _by_faiss(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        with faiss_threads(self.n_threads) as faiss:
            options = faiss.ClusteringParameters()
            options.niter = self.n_iter
            options.nredo = self._starts(len(points))
            options.seed = self.seed % 2**31  # a C int in faiss
            options.min_points_per_centroid = 1
            options.max_points_per_centroid = len(points)  # the default, 256, would silently train on a sub-sample
            clustering = faiss.Clustering(points.shape[1], self.k, options)
            clustering.train(points, flat_index(faiss, points.shape[1], self.gpu))
            centres: NDArray[np.float32] = faiss.vector_to_array(clustering.centroids).reshape(self.k, -1)
        return centres

    def _by_superkmeans(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """The centres of the best start.

        Raises:
            ClusteringError: The library is missing, or a GPU is demanded.
        """
        if self.gpu is True:
            raise ClusteringError("superkmeans=true runs on the CPU, and gpu=true demands a GPU: leave one out")
        starts = range(self._starts(len(points)))
        found = [Centres(self._one_start(points, (self.seed + n) % 2**31), False, self.n_threads) for n in starts]
        if len(found) == 1:
            return found[0].points
        return min(found, key=lambda centres: centres.assign(points)[1].mean(dtype=np.float64)).points

    def _one_start(self, points: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
        try:
            from superkmeans import SuperKMeans
        except ImportError as error:
            raise ClusteringError(
                f"superkmeans=true: {error}; pip install 'decar[superkmeans]', or leave it out"
            ) from error
        with faiss_threads(self.n_threads) as faiss:
            model = SuperKMeans(
                self.k, points.shape[1], hierarchical=False, iters=self.n_iter, seed=seed,
                n_threads=faiss.omp_get_max_threads(),
                # the defaults would learn from a share of the points, and stop early
                sampling_fraction=1.0, max_points_per_cluster=len(points), early_termination=False,
            )  # fmt: skip
        return np.ascontiguousarray(model.train(points))

    def _starts(self, n: int) -> int:
        if self.n_init == "auto":
            return SMALL_SET_STARTS if n <= SMALL_SET else 1
        require_at_least_one(n_init=self.n_init)
        return self.n_init


@dataclass(frozen=True)
class Centres:
    """What K-Means has learned.

    Attributes:
        points: `(k, d)` float32.
        gpu: As of `KMeans`.
        n_threads: As of `KMeans`.
    """

    points: NDArray[np.float32]
    gpu: bool | Literal["auto"] = "auto"
    n_threads: int | None = None

    def assign(self, features: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The nearest centre of each of `(N, d)` features, and the squared distance to it, each `(N,)`."""
        points = check_table(features)
        labels, squared = np.empty(len(points), np.int64), np.empty(len(points), np.float32)
        with faiss_threads(self.n_threads) as faiss:
            index = flat_index(faiss, points.shape[1], self.gpu)
            index.add(self.points)
            for rows in query_blocks(len(points)):
                block = np.ascontiguousarray(points[rows], np.float32)
                index.search(block, 1, D=squared[rows, None], I=labels[rows, None])
        return labels, squared

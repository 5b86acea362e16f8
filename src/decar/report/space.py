"""The embedding looked at: a sample of the clips, a map in two dimensions, both ends of every cluster.

The map is scikit-learn's t-SNE: scikit-learn is there already and takes 5.5 s for the 1,991 bundled clips on one core.
umap-learn would bring numba and llvmlite; its maps were not compared.

Letters: `N` clips, `D` embedding.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_CLIPS = 3000  # embedded and drawn; more neither fit a page nor can be told apart
PERPLEXITY = 30.0


def sample(n: int, seed: int, most: int = MAX_CLIPS) -> NDArray[np.int64]:
    """Which of `n` clips are looked at: all, or `most` drawn evenly without repetition, in rising order."""
    if n <= most:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, most, replace=False))


def standardised(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """`(N, D)`, each dimension with mean 0 and deviation 1 (0 where it is constant), rows then of length 1."""
    deviation = embeddings.std(axis=0)
    scaled = (embeddings - embeddings.mean(axis=0)) / np.where(deviation > 1e-6, deviation, np.inf)
    unit: NDArray[np.float32] = scaled / np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), 1e-12)
    return unit


def tsne(unit: NDArray[np.float32], seed: int) -> NDArray[np.float64]:
    """`(N, D)` → `(N, 2)`: t-SNE of the first 50 principal components, begun from the first two; none beyond ±1."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    n = len(unit)
    if n < 5 or not np.ptp(unit, axis=0).any():  # t-SNE needs neighbours; what is all one point stays one
        angle = 2 * np.pi * np.arange(n) / max(n, 1)
        return np.stack([np.cos(angle), np.sin(angle)], axis=1)
    reduced = PCA(min(50, n - 1, unit.shape[1]), random_state=seed).fit_transform(unit)
    method = TSNE(2, perplexity=min(PERPLEXITY, (n - 1) / 3), init="pca", random_state=seed, n_jobs=1)
    places: NDArray[np.float64] = method.fit_transform(reduced).astype(np.float64)
    places -= (places.max(axis=0) + places.min(axis=0)) / 2
    scaled: NDArray[np.float64] = places / np.abs(places).max()
    return scaled


def ends(unit: NDArray[np.float32], clusters: NDArray[np.int64], each: int = 3) -> dict[int, dict[str, Any]]:
    """The clips nearest to and farthest from the mean direction of each cluster, by cosine.

    Args:
        unit: `(N, D)`, rows of length 1.
        clusters: `(N,)`.
        each: Clips at either end; a small cluster has fewer, and no clip is at both ends.

    Returns:
        For each cluster `near` and `far`: rows of `unit`, the nearest and the farthest first; and `cosine`, the mean.
    """
    found = {}
    for cluster in np.unique(clusters).tolist():
        rows = np.flatnonzero(clusters == cluster)
        middle = unit[rows].mean(axis=0)
        cosine = unit[rows] @ (middle / max(float(np.linalg.norm(middle)), 1e-12))
        order = rows[np.argsort(-cosine, kind="stable")]
        near = order[:each]
        far = order[len(near) :][-each:][::-1]
        found[cluster] = {"near": near.tolist(), "far": far.tolist(), "cosine": float(cosine.mean())}
    return found

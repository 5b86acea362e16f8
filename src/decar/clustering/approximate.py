"""Approximate nearest neighbours for sets that are too large to compare every point with every other.

An inverted file: K-Means on a sample cuts the points into cells, and each point is compared with those of its
`PROBES` nearest cells. The number of cells grows as N^(2/3), which keeps cutting and comparing about equally dear.

On 200,000 structured points of 128 dimensions (1024 kinds, as `benchmarks/scale.py` makes them) and two cores this
takes 5.0 s where the exact search takes 54 s, and PIC's labels agree with those of the exact graph to an NMI of 0.9998
(`make bench`). What else was tried there, once each, at one setting, with other work beside some:

    inverted file, 800 cells, 8 probes           26 s   recall 0.999   NMI 1.000   (twice the noise: 0.907, 0.964)
    faiss.knn by matrix product in 400 cells     25 s   recall 0.994   NMI 0.997   (selecting costs what it saves)
    HNSW, M 16, efConstruction 40, efSearch 32   11 s   recall 0.895   NMI 0.932
    NNDescent, K 24, 6 rounds                    15 s   recall 0.695   NMI 0.895

The last two also depend on the order in which their threads meet. Here nothing does: one seed, one graph, on any
number of threads.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decar.clustering.base import query_blocks, row_blocks
from decar.clustering.nearest import faiss_threads, refine

PROBES = 8  # cells that a point is compared with
_TRAIN_POINTS = 39  # a cell; faiss warns below
_TRAIN_ITERATIONS = 6
_CROWD = 8  # times the mean size, from which on a cell is cut


def approximate_neighbours(
    features: NDArray[np.float32], n_neighbors: int, *, seed: int = 0, n_threads: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Nearest neighbours of every point among those of the nearest cells; on the CPU.

    Args:
        features: `(N, d)` with `N > n_neighbors`.
        n_neighbors: Neighbours a point; itself never counts, its duplicates do.
        seed: Of the cells.
        n_threads: None leaves faiss's own number.

    Returns:
        As of `nearest_neighbours`.
    """
    with faiss_threads(n_threads) as faiss:
        n_cells = min(max(round(0.5 * len(features) ** (2 / 3)), 1), len(features))
        probes, distances = _nearest_cells(faiss, features, n_cells, seed)
        cells = _Cells.cut(probes, n_cells)
        index = faiss.IndexIVFFlat(faiss.IndexFlatL2(features.shape[1]), features.shape[1], cells.number)
        index.own_fields, index.is_trained, index.nprobe = False, True, probes.shape[1]
        _add(faiss, index, features, cells.own)

        def search(rows: NDArray[np.int64], n: int) -> NDArray[np.int64]:
            lists = cells.first[probes[rows]]
            found: NDArray[np.int64] = index.search_preassigned(features[rows], n, lists, distances[rows])[1]
            short = np.flatnonzero(found[:, -1] < 0)  # its cells hold too few points: compare these with all
            if len(short):
                found[short] = faiss.knn(features[rows[short]], features, n)[1]
            return found

        order = np.argsort(cells.own, kind="stable")  # those of one cell together: its points stay in the cache
        return refine(features, order, n_neighbors, search)


def _nearest_cells(
    faiss: Any, features: NDArray[np.float32], n_cells: int, seed: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The nearest cells `(N, PROBES)` of each point, nearest first, and the squared distances to their centres."""
    sample = np.sort(np.random.default_rng(seed).permutation(len(features))[: n_cells * _TRAIN_POINTS])
    kmeans = faiss.Kmeans(
        features.shape[1], n_cells, niter=_TRAIN_ITERATIONS, seed=seed % 2**31, min_points_per_centroid=1,
        max_points_per_centroid=len(features),
    )  # fmt: skip
    kmeans.train(features[sample])
    n_probes = min(PROBES, n_cells)
    cells, distances = np.empty((len(features), n_probes), np.int32), np.empty((len(features), n_probes), np.float32)
    for rows in query_blocks(len(features)):
        distances[rows], cells[rows] = kmeans.index.search(features[rows], n_probes)
    first = first_of_duplicates(features)
    copies = np.flatnonzero(first != np.arange(len(first)))
    cells[copies], distances[copies] = cells[first[copies]], distances[first[copies]]
    return cells, distances


def first_of_duplicates(features: NDArray[np.float32]) -> NDArray[np.int64]:
    """For each of `(N, d)` points, the index of the first point that equals it, mostly itself: `(N,)`.

    faiss measures distances by matrix products, whose rounding depends on a point's place in its block. Copies of one
    point may fall into different cells, and would be islands in the graph. Points are compared by a 64-bit hash: a sum
    of products of integers, which is exact in any order.
    """
    odd = np.random.default_rng(0).integers(2**63, size=features.shape[1], dtype=np.uint64) * 2 + 1
    hashes = np.empty(len(features), np.uint64)
    for rows in row_blocks(len(features)):
        hashes[rows] = (features[rows].view(np.uint32) * odd).sum(axis=1)
    _, leading, own = np.unique(hashes, return_index=True, return_inverse=True)
    first: NDArray[np.int64] = leading[own]
    for rows in row_blocks(len(features)):
        alike = rows.start + np.flatnonzero(first[rows] != np.arange(rows.start, rows.stop))
        other = alike[(features[alike] != features[first[alike]]).any(axis=1)]  # of one hash by chance
        first[other] = other
    return first


@dataclass(frozen=True)
class _Cells:
    """Cells after the crowded ones are cut; else a million duplicates were compared with one another.

    Attributes:
        own: `(N,)` cell of each point.
        first: `(n_cells,)` for each cell before, the first of its pieces. All look there, also the points of the other
            pieces: else those would know nothing of each other, and a million silent clips would make many clusters.
        number: Pieces in all.
    """

    own: NDArray[np.int64]
    first: NDArray[np.int64]
    number: int

    @classmethod
    def cut(cls, probes: NDArray[np.int32], n_cells: int) -> "_Cells":
        nearest = probes[:, 0].astype(np.int64)
        sizes = np.bincount(nearest, minlength=n_cells)
        most = max(_CROWD * len(nearest) // n_cells, 1)
        pieces = np.maximum(-(-sizes // most), 1)
        first = np.cumsum(pieces) - pieces
        order = np.argsort(nearest, kind="stable")
        place = np.empty_like(order)  # of a point within its cell
        place[order] = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return cls(first[nearest] + place // most, first, int(pieces.sum()))


def _add(faiss: Any, index: Any, features: NDArray[np.float32], cells: NDArray[np.int64]) -> None:
    """Put points into the cells that are known already: `index.add` would search them once more."""
    for rows in query_blocks(len(features)):
        ids = np.arange(rows.start, rows.stop)
        block, own = features[rows], cells[rows]
        index.add_core(len(ids), faiss.swig_ptr(block), faiss.swig_ptr(ids), faiss.swig_ptr(own))

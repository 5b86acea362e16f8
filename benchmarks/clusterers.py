"""The clusterers against what they are made of: plain faiss, the search alone, the exact graph.

Ours and the reference run in turn in one process, so that whatever else the machine does meets both. Vectors are those
of `scale.py`, whitened to 128 dimensions. A part of `make bench`.
"""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray
from rig import Line, alternate, line, times
from scale import DIM, beyond_search, write_mixture

from decar.clustering import PIC, KMeans, nmi, prepare
from decar.clustering.pic import _mean_squared_radius

POINTS, MANY, K, ITERATIONS = 50_000, 200_000, 1024, 20
ON_BOTH: dict[str, KMeans | PIC] = {
    "K-Means": KMeans(k=K, n_iter=ITERATIONS),
    "PIC": PIC(sigma="auto", neighbors="exact"),
}


def measure(runs: int = 5, device: str = "cpu") -> list[Line]:
    """On the CPU all three, the last takes a minute a run; on a GPU the same clusterers there and on the CPU."""
    if device == "cuda":
        points = points_of(POINTS)
        return [moved(name, clusterer, points, runs) for name, clusterer in ON_BOTH.items()]
    return [kmeans(runs), beyond(runs), approximate(runs)]


def points_of(n: int) -> NDArray[np.float32]:
    """What is clustered, of a mixture of `n` vectors."""
    with tempfile.TemporaryDirectory() as folder:
        write_mixture(Path(folder), n)
        return prepare(np.load(Path(folder) / "x.npy", mmap_mode="r"), DIM)


def keeping(found: dict[str, Any], name: str, work: Callable[[], Any]) -> Callable[[], None]:
    """Work whose last result is kept by name."""

    def run() -> None:
        found[name] = work()

    return run


def moved(name: str, clusterer: KMeans | PIC, points: NDArray[np.float32], runs: int) -> Line:
    """A clusterer with faiss on the GPU against itself on the CPU."""
    found = dict[str, Any]()
    there, here = (replace(clusterer, gpu=gpu) for gpu in (True, False))
    pairs = alternate(
        keeping(found, "gpu", lambda: there.fit_predict(points).labels),
        keeping(found, "cpu", lambda: here.fit_predict(points).labels),
        runs,
    )
    agreement = nmi(found["gpu"], found["cpu"])
    note = f"{POINTS:,} x {DIM}: all CPU cores / GPU; NMI of their labels {agreement:.4f}"
    return line(name, pairs, note=note)


def kmeans(runs: int) -> Line:
    """K-Means as we call it against the same faiss calls bare."""
    points, found = points_of(POINTS), dict[str, Any]()

    def plain() -> Any:
        clustering = faiss.Kmeans(
            DIM, K, niter=ITERATIONS, seed=0, min_points_per_centroid=1, max_points_per_centroid=len(points)
        )
        clustering.train(points)
        return clustering.index.search(points, 1)[1].ravel()

    ours = KMeans(k=K, n_iter=ITERATIONS, gpu=False)
    pairs = alternate(
        keeping(found, "ours", lambda: ours.fit_predict(points).labels), keeping(found, "plain", plain), runs
    )
    same = "labels equal" if np.array_equal(found["ours"], found["plain"]) else "labels differ"
    note = f"{POINTS:,} x {DIM}, k = {K}: ours / plain faiss; {same}"
    return line("K-Means", pairs, speed=False, target="<= 1.1", note=note)


def beyond(runs: int) -> Line:
    """What PIC does once it has neighbours, beside the search for them."""
    points, clusterer = points_of(POINTS), PIC(sigma="auto", neighbors="exact", gpu=False)
    neighbours, squared = clusterer.search(points)

    def rest() -> None:
        labels, _ = beyond_search(clusterer, neighbours, squared)
        _mean_squared_radius(points, labels)

    pairs = alternate(rest, lambda: clusterer.search(points), runs)
    search = sorted(b for _, b in pairs)[len(pairs) // 2]
    note = f"{POINTS:,} x {DIM}; the search takes {search:.1f} s"
    return times("PIC beyond the search (s)", [a for a, _ in pairs], target="<= 2", note=note)


def approximate(runs: int) -> Line:
    """PIC on the approximate graph against PIC on the exact one."""
    points, found = points_of(MANY), dict[str, Any]()
    ours, exact = (PIC(sigma="auto", neighbors=how, gpu=False) for how in ("approximate", "exact"))
    pairs = alternate(
        keeping(found, "ours", lambda: ours.fit_predict(points).labels),
        keeping(found, "exact", lambda: exact.fit_predict(points).labels),
        min(runs, 3),
    )
    agreement = nmi(found["ours"], found["exact"])
    note = f"{MANY:,} x {DIM}: exact / approximate; NMI of their labels {agreement:.4f}, asked >= 0.95"
    return line("PIC, approximate graph", pairs, target=">= 5", note=note)

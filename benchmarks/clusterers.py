"""The clusterers against what they are made of: plain faiss, the search alone, the exact graph.

    python benchmarks/clusterers.py [--rounds 5] [--only kmeans beyond approximate]

Ours and the reference run in turn in one process, so that whatever else the machine does meets both. Vectors are those
of `scale.py`, whitened to 128 dimensions.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from scale import DIM, beyond_search, write_mixture

from decar.clustering import PIC, KMeans, nmi, prepare
from decar.clustering.pic import _mean_squared_radius

POINTS, MANY, K, ITERATIONS = 50_000, 200_000, 1024, 20
Row = dict[str, Any]


def measure(rounds: int = 5, only: Sequence[str] = ("kmeans", "beyond", "approximate")) -> list[Row]:
    """Seconds and ratios, medians over `rounds`; the last arm takes a minute a round.

    Returns:
        One row an arm: name, ours_s, reference_s, ratio_median, ratio_min, ratio_max, target, note. The ratio is ours
        by reference, but of `approximate` the reference by ours.
    """
    return [ARMS[name](rounds) for name in only]


def alternate(
    ours: Callable[[], Any], reference: Callable[[], Any], rounds: int
) -> tuple[list[float], list[float], Any, Any]:
    """Seconds of each round of both, and what the last round found."""
    seconds: tuple[list[float], list[float]] = [], []
    found: list[Any] = [None, None]
    for i in range(rounds):
        for which in (0, 1) if i % 2 else (1, 0):
            began = time.perf_counter()
            found[which] = (ours, reference)[which]()
            seconds[which].append(time.perf_counter() - began)
    return *seconds, *found


def row(name: str, ours: list[float], reference: list[float], ratio: Any, target: str, note: str) -> Row:
    return {
        "name": name, "ours_s": float(np.median(ours)), "reference_s": float(np.median(reference)),
        "ratio_median": float(np.median(ratio)), "ratio_min": float(np.min(ratio)), "ratio_max": float(np.max(ratio)),
        "target": target, "note": note,
    }  # fmt: skip


def points_of(n: int) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        write_mixture(Path(folder), n)
        return prepare(np.load(Path(folder) / "x.npy", mmap_mode="r"), DIM)


def kmeans(rounds: int) -> Row:
    """K-Means as we call it against the same faiss calls bare."""
    points = points_of(POINTS)

    def plain() -> Any:
        clustering = faiss.Kmeans(
            DIM, K, niter=ITERATIONS, seed=0, min_points_per_centroid=1, max_points_per_centroid=len(points)
        )
        clustering.train(points)
        return clustering.index.search(points, 1)[1].ravel()

    ours, reference, found, expected = alternate(
        lambda: KMeans(k=K, n_iter=ITERATIONS, gpu=False).fit_predict(points).labels, plain, rounds
    )
    same = "labels equal" if np.array_equal(found, expected) else "labels differ"
    ratio = np.divide(ours, reference)
    return row("kmeans against plain faiss", ours, reference, ratio, "<= 1.1", f"{POINTS} x {DIM}, k {K}; {same}")


def beyond(rounds: int) -> Row:
    """What PIC does once it has neighbours, beside the search for them."""
    points, clusterer = points_of(POINTS), PIC(sigma="auto", neighbors="exact", gpu=False)
    neighbours, squared = clusterer.search(points)

    def rest() -> None:
        labels, _ = beyond_search(clusterer, neighbours, squared)
        _mean_squared_radius(points, labels)

    ours, reference, _, _ = alternate(rest, lambda: clusterer.search(points), rounds)
    note = f"{POINTS} x {DIM}; the reference is the search alone"
    return row("pic beyond the search", ours, reference, np.divide(ours, reference), "ours_s <= 2", note)


def approximate(rounds: int) -> Row:
    """PIC on the approximate graph against PIC on the exact one."""
    points = points_of(MANY)
    run = {how: PIC(sigma="auto", neighbors=how, gpu=False) for how in ("approximate", "exact")}
    ours, reference, found, exact = alternate(
        lambda: run["approximate"].fit_predict(points).labels, lambda: run["exact"].fit_predict(points).labels, rounds
    )
    note = f"{MANY} x {DIM}; NMI of the labels {nmi(found, exact):.4f} (target >= 0.95); ratio = exact by approximate"
    return row("pic approximate against exact", ours, reference, np.divide(reference, ours), ">= 5", note)


ARMS: dict[str, Callable[[int], Row]] = {"kmeans": kmeans, "beyond": beyond, "approximate": approximate}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=list(ARMS), default=list(ARMS))
    options = parser.parse_args()
    for found in measure(options.rounds, options.only):
        print(json.dumps(found))


if __name__ == "__main__":
    main()

"""K-Means by superkmeans beside ours by faiss, on real whitened vectors, one thread each (docs/recipe.md).

    pip install superkmeans==0.2.0   # into an environment of its own: decar does not use it
    python benchmarks/other_kmeans.py --root DIR              # DIR: index.csv with path, kind and pretrain
    python benchmarks/other_kmeans.py --root DIR --dims 512

Clips are embedded by `small`, whitened and brought to length 1 as in training. Both cluster all points, in turn in one
process, in the same number of iterations and from the same seeds; then each point goes to its nearest centre, by the
same call. `inertia`, the mean squared distance to the centre, and the time are ratios to faiss', medians over the
seeds. `NMI to faiss` stands beside that of faiss with another seed.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rig import machine, seconds

from decar.audio import LogMelStore, Manifest
from decar.clustering import KMeans, nmi, prepare
from decar.clustering.kmeans import Centres
from decar.models import embed_store, load_encoder

Floats = NDArray[np.float32]
Fit = Callable[[Floats, int], Floats]
WAYS: dict[str, dict[str, Any]] = {
    "flat": {"hierarchical": False},
    "hierarchical": {"hierarchical": True},
    "hierarchical, 5 refining": {"hierarchical": True, "iters_refinement": 5},
}


@dataclass(frozen=True)
class Found:
    """Seconds to learn the centres, mean squared distance to them, and the clusters."""

    took: float
    inertia: float
    labels: NDArray[np.int64]


def vectors(root: Path) -> tuple[Floats, NDArray[Any]]:
    """Embeddings `(N, D)` of the clips that may be trained on, and the kind of each."""
    table = pd.read_csv(root / "index.csv")
    manifest = Manifest(table[table["pretrain"].astype(bool)].reset_index(drop=True), root)
    encoder = load_encoder("small")
    with tempfile.TemporaryDirectory() as folder:
        store = LogMelStore.open_or_build(manifest, encoder.frontend, folder, progress=False).usable()
        return embed_store(encoder, store, progress=False), store.manifest.table["kind"].to_numpy()


def by_faiss(ours: KMeans) -> Fit:
    """As we call it."""
    return lambda points, seed: replace(ours, seed=seed).fit(points).points


def by_superkmeans(ours: KMeans, options: dict[str, Any]) -> Fit:
    """On all points, to the last iteration."""
    from superkmeans import SuperKMeans

    def fit(points: Floats, seed: int) -> Floats:
        model = SuperKMeans(
            ours.k, points.shape[1], iters=ours.n_iter, n_threads=1, seed=seed, sampling_fraction=1.0,
            max_points_per_cluster=len(points), early_termination=False, **options,
        )  # fmt: skip
        return np.ascontiguousarray(model.train(points))

    return fit


def found(fit: Fit, points: Floats, seed: int) -> Found:
    """Cluster once."""
    centres: list[Floats] = []
    took = seconds(lambda: centres.append(fit(points, seed)))
    labels, squared = Centres(centres[0], gpu=False, n_threads=1).assign(points)
    return Found(took, float(squared.mean(dtype=np.float64)), labels)


def compare(points: Floats, kinds: NDArray[Any], k: int, n_iter: int, seeds: Sequence[int]) -> list[str]:
    """The rows of a table for one `k`: each way in turn with faiss, seed by seed."""
    ours = KMeans(k=k, n_iter=n_iter, gpu=False, n_threads=1)
    fits = {"faiss": by_faiss(ours)} | {name: by_superkmeans(ours, options) for name, options in WAYS.items()}
    runs = [{name: found(fit, points, seed) for name, fit in fits.items()} for seed in seeds]
    rows = []
    for name in fits:

        def middle(value: Callable[[int], float]) -> str:
            return f"{statistics.median(value(i) for i in range(len(runs))):.3f}"

        took = middle(lambda i, n=name: runs[i][n].took)  # type: ignore[misc]
        speed = middle(lambda i, n=name: runs[i]["faiss"].took / runs[i][n].took)  # type: ignore[misc]
        worse = middle(lambda i, n=name: runs[i][n].inertia / runs[i]["faiss"].inertia)  # type: ignore[misc]
        like = middle(lambda i, n=name: nmi(runs[i][n].labels, runs[i - 1 if n == "faiss" else i]["faiss"].labels))  # type: ignore[misc]
        kind = middle(lambda i, n=name: nmi(runs[i][n].labels, kinds))  # type: ignore[misc]
        rows.append(f"| {k} | {name} | {took} | {speed} | {worse} | {like} | {kind} |")
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, metavar="DIR")
    parser.add_argument("--k", type=int, nargs="+", default=[128, 512, 1000])
    parser.add_argument("--dims", type=int, default=128, help="whitened dimensions (default: %(default)s)")
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    embeddings, kinds = vectors(args.root)
    points, codes = prepare(embeddings, args.dims), pd.factorize(kinds)[0]
    print(f"{len(points):,} x {points.shape[1]}, {args.iterations} iterations, {args.seeds} seeds; {machine()}\n")
    print("| k | | s | speed | inertia | NMI to faiss | NMI to kinds |\n|---:|---|---:|---:|---:|---:|---:|")
    for k in args.k:
        print("\n".join(compare(points, codes, k, args.iterations, range(args.seeds))), flush=True)


if __name__ == "__main__":
    main()

"""What `decar cluster` finds, against what is known: the choice of k, the ways to cluster, and the novelty.

    python benchmarks/auto_k.py                    # the bundled sounds: a few minutes
    python benchmarks/auto_k.py --root DIR         # a folder with tasks/*.csv (path, label)

Sets are the clips of each task, and 300 of them; what counts is the adjusted mutual information (AMI) with the labels.

- k: for each rule the AMI at the k that it picks, as a share of the best AMI at any of the k that are tried. Sets
  with less than 0.1 at the best k are left out.
- methods: AMI of K-Means with `k=auto`, PIC, and HDBSCAN, with noise as a cluster of its own, and the share of noise.
- novelty: clusters are made without the clips of one label; how well the novelty tells them from new clips of the other
  labels (area under the ROC curve), beside two other measures. Half of the clips of the other labels are held back.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import (
    adjusted_mutual_info_score,
    calinski_harabasz_score,
    davies_bouldin_score,
    roc_auc_score,
)

from decar.audio import LogMelStore, Manifest
from decar.clustering import KMeans, Whitening, make_clusters
from decar.clustering.choose import plausible, silhouette, smallest_nearly_best
from decar.clustering.model import Method
from decar.downstream.evaluate import cached_embeddings
from decar.models import load_encoder

ROOT = Path(__file__).resolve().parents[1]
MINI = ROOT / "src" / "decar" / "data" / "mini"
BUNDLED = ("kind", "event", "drum_class", "speaker", "language", "instrument_family")
LEAST_AMI = 0.1  # at the best k: below it the clusters do not know the labels, and no k is right
MOST, FEW = 3000, 300
LEFT_OUT = 12  # labels of a task that are left out in turn
TRIED = (2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128)

Floats = NDArray[np.float32]
Sets = dict[str, tuple[Floats, NDArray[np.str_]]]


def tables(root: Path) -> Iterator[tuple[str, pd.DataFrame]]:
    """Name, and `path` and `label`, of each task; of the bundled sounds of each column of labels."""
    for file in sorted((root / "tasks").glob("*.csv")):
        yield file.stem, pd.read_csv(file, dtype=str)
    if root == MINI:
        clips = pd.read_csv(root / "metadata.csv", dtype=str).rename(columns={"file": "path"})
        for name in BUNDLED:
            yield name, clips[["path", name]].dropna().rename(columns={name: "label"})


def sets(root: Path, cache: Path) -> Sets:
    """Vectors by `small` and labels of each task, whole and of 300 clips."""
    found: Sets = {}
    for name, table in tables(root):
        if len(table) > MOST:
            table = table.sample(MOST, random_state=0).sort_index()
        store = LogMelStore.open_or_build(Manifest(table.reset_index(drop=True), root), cache_dir=cache).usable()
        vectors = cached_embeddings(load_encoder(), store, cache)
        labels = store.manifest.column("label").to_numpy(str)
        found[name] = vectors, labels
        if len(labels) > 2 * FEW:
            some = np.random.default_rng(0).choice(len(labels), FEW, replace=False)
            found[f"{name}, {FEW}"] = vectors[some], labels[some]
    return found


def numbers(vectors: Floats, labels: NDArray[np.str_]) -> dict[str, float]:
    """For each rule the share of the best AMI, and the k that it picks."""
    unit = Whitening.fit(vectors).unit(vectors)
    own = plausible(len(unit))
    tried = sorted({k for k in (*TRIED, *own) if k < len(unit) / 2})
    runs = {k: [KMeans(k, n_init="auto", seed=seed).fit_predict(unit).labels for seed in (0, 1)] for k in tried}
    ami = {k: float(adjusted_mutual_info_score(labels, runs[k][0])) for k in tried}
    score: dict[str, Callable[[int], float]] = {
        "silhouette": lambda k: silhouette(unit, runs[k][0]),
        "stability": lambda k: float(adjusted_mutual_info_score(*runs[k])),
        "Calinski-Harabasz": lambda k: float(calinski_harabasz_score(unit, runs[k][0])),
        "Davies-Bouldin": lambda k: -float(davies_bouldin_score(unit, runs[k][0])),
    }
    picked = {f"{name}, best": max(tried, key=of) for name, of in score.items()}
    width = {k: score["silhouette"](k) for k in tried}
    picked["silhouette, smallest of 95 %"] = smallest_nearly_best(width)
    picked["sqrt(N / 2)"] = min(tried, key=lambda k: abs(k - np.sqrt(len(unit) / 2)))
    picked["auto: the same, around sqrt(N / 2)"] = smallest_nearly_best({k: width[k] for k in own})
    best = max(ami.values())
    if best < LEAST_AMI:
        return {}
    return {rule: ami[k] / best for rule, k in picked.items()} | {f"k of {rule}": k for rule, k in picked.items()}


def methods(vectors: Floats, labels: NDArray[np.str_]) -> dict[str, float]:
    """AMI of each way to cluster."""
    found: dict[str, float] = {}
    ways: tuple[Method, ...] = ("kmeans", "pic", "hdbscan")
    for method in ways:
        placed = make_clusters(vectors, np.arange(len(vectors)), method=method)[1]
        found[method] = float(adjusted_mutual_info_score(labels, placed.labels))
    return found | {"noise": float((placed.labels < 0).mean())}


def novelty(vectors: Floats, labels: NDArray[np.str_]) -> dict[str, float]:
    """Area under the ROC curve of three measures, mean over labels that are left out."""
    rng, rows = np.random.default_rng(0), []
    names, counts = np.unique(labels, return_counts=True)
    for name in names[np.argsort(-counts, kind="stable")][:LEFT_OUT]:
        others = np.flatnonzero(labels != name)
        known = np.zeros(len(labels), bool)
        known[rng.choice(others, len(others) // 2, replace=False)] = True
        model, _ = make_clusters(vectors[known], np.arange(known.sum()))
        asked = ~known
        unit, placed = model.whitening.unit(vectors[asked]), model.place(vectors[asked])
        squared = np.sort(((unit[:, None] - model.centres) ** 2).sum(axis=2), axis=1)
        measures = {
            "nearest clip": placed.novelty,
            "distance to the centre": placed.distance,
            "nearest to second centre": squared[:, 0] / squared[:, 1],
        }
        rows.append({key: roc_auc_score(labels[asked] == name, value) for key, value in measures.items()})
    return {str(key): float(value) for key, value in pd.DataFrame(rows).mean().items()}


PARTS = {"k": numbers, "methods": methods, "novelty": novelty}


def main() -> None:
    """Print a table a part, and its mean over the sets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=MINI)
    parser.add_argument("--cache", type=Path, default=ROOT / "runs" / "auto-k")
    parser.add_argument("--parts", nargs="+", choices=[*PARTS], default=[*PARTS])
    args = parser.parse_args()
    found = sets(args.root, args.cache)
    for part in args.parts:
        rows = {name: PARTS[part](*of) for name, of in found.items() if part != "novelty" or f", {FEW}" not in name}
        table = pd.DataFrame({name: row for name, row in rows.items() if row}).T
        print(
            f"\n{part}, {len(table)} sets\n{table.round(3).to_string()}\n\nmean\n{table.mean().round(3).to_string()}",
            flush=True,
        )


if __name__ == "__main__":
    main()

"""How many labels a classifier needs: clips that `decar suggest` picks, against clips drawn at random.

    python benchmarks/active.py --root DIR [--tasks superclass percussion instrument_family] [--seeds 3] [--jobs 2]

DIR holds the clips and tasks/NAME.csv with path, label and split. Clips of the split `train` are labelled in rounds of
20, then of 40: the first ones are typical, later ones those of which the classifier of the round before is unsure and
that are unlike one another. The score is the accuracy on `test`, where the label with the largest margin is taken.
What is printed for each task: the score with all labels, and how many labels reach 90 % of it (the median of the seeds
and all of them; linear between rounds). The encoder is `small`, or --bundle.
"""

import argparse
import logging
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from decar.audio import Manifest
from decar.downstream.classifier import Classifier, fit_classifier, margins, read_examples
from decar.downstream.suggest import suggest
from decar.embedder import Embedder
from decar.models import load_encoder

TASKS = ("superclass", "percussion", "instrument_family")
ROUNDS = (20, 40, 60, 80, 100, 140, 180, 220, 260, 300, 340, 380, 420, 460, 500)
ENOUGH = 0.9  # of the score with all labels
ARMS = ("random", "suggest")

Vectors = NDArray[np.float32]


def embedded(root: Path, task: str, bundle: str) -> tuple[pd.DataFrame, Vectors]:
    """The table of a task, and its vectors."""
    clips = Manifest.from_csv(root / "tasks" / f"{task}.csv", root=root)
    made = Embedder(load_encoder(bundle)).files(clips, progress=True)
    return made.table, made.vectors


def taught(table: pd.DataFrame, vectors: Vectors, rows: NDArray[np.int64]) -> Classifier:
    """The classifier of some labelled clips."""
    examples = read_examples(Manifest(table.iloc[rows][["path", "label"]], Path("/")))
    return fit_classifier(vectors[rows], examples, group=None)


def accuracy(classifier: Classifier, table: pd.DataFrame, vectors: Vectors) -> float:
    """Share of clips whose label has the largest margin."""
    best = margins(classifier.scores(vectors), classifier.thresholds).argmax(axis=1)
    return float((np.array(classifier.names)[best] == table["label"].to_numpy()).mean())


def curve(table: pd.DataFrame, vectors: Vectors, arm: str, seed: int) -> dict[int, float]:
    """Accuracy after each round."""
    logging.disable(logging.WARNING)  # which labels cannot be validated yet
    threadpool_limits(1)
    train, test = (np.flatnonzero(table["split"] == split) for split in ("train", "test"))
    known, seen = table.iloc[train].reset_index(drop=True), vectors[train]
    order = np.random.default_rng(seed).permutation(len(known))
    rows, classifier, found = np.empty(0, np.int64), None, dict[int, float]()
    for n in [n for n in ROUNDS if n < len(known)]:
        if arm == "random":
            rows = order[:n]
        else:
            rows = np.concatenate([rows, suggest(seen, rows, classifier, n - len(rows), seed)])
        if known["label"].iloc[rows].nunique() > 1:
            classifier = taught(known, seen, rows)
            found[n] = accuracy(classifier, table.iloc[test], vectors[test])
    return found


def needed(found: dict[int, float], goal: float) -> float:
    """Labels after which the goal is reached, linear between rounds; infinite if it never is.

    >>> needed({20: 0.2, 40: 0.6}, 0.5), needed({20: 0.2}, 0.5)
    (35.0, inf)
    """
    before = (0, 0.0)
    for n, score in found.items():
        if score >= goal:
            return before[0] + (n - before[0]) * (goal - before[1]) / (score - before[1])
        before = (n, score)
    return float("inf")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--bundle", default="small")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, help="the curves, as CSV")
    args = parser.parse_args()
    curves = list[dict[str, object]]()
    print(
        "| task | classes | clips | all labels | "
        + " | ".join(f"{arm}: labels for {ENOUGH:.0%}" for arm in ARMS)
        + " |"
    )
    print("|---|---:|---:|---:|---:|---:|")
    for task in args.tasks:
        table, vectors = embedded(args.root, task, args.bundle)
        train, test = (np.flatnonzero(table["split"] == split) for split in ("train", "test"))
        logging.disable(logging.WARNING)
        whole = accuracy(taught(table, vectors, train), table.iloc[test], vectors[test])
        with ProcessPoolExecutor(args.jobs) as pool:
            runs = {
                (arm, seed): pool.submit(curve, table, vectors, arm, seed) for seed in range(args.seeds) for arm in ARMS
            }
            found = {key: run.result() for key, run in runs.items()}
        cells = [_cell(needed(found[arm, seed], ENOUGH * whole) for seed in range(args.seeds)) for arm in ARMS]
        kinds = table["label"].nunique()
        print(f"| {task} | {kinds} | {len(train)} | {whole:.1%} | {' | '.join(cells)} |", flush=True)
        curves += [
            {"task": task, "arm": arm, "seed": seed, "labels": n, "accuracy": score}
            for (arm, seed), one in found.items()
            for n, score in one.items()
        ]  # fmt: skip
    if args.out:
        pd.DataFrame(curves).to_csv(args.out, index=False)


def _cell(values: Iterable[float]) -> str:
    """Their median, and all of them.

    >>> _cell([30.2, float("inf"), 12])
    '30 (12, 30, >500)'
    """
    texts = [f"{value:.0f}" if np.isfinite(value) else f">{ROUNDS[-1]}" for value in sorted(values)]
    return f"{texts[len(texts) // 2]} ({', '.join(texts)})"


if __name__ == "__main__":
    main()

"""The three splits, and drawing one where the source gives none. No torch in here."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

SPLITS = ("train", "valid", "test")


def hold_out(
    labels: NDArray[np.str_], files: NDArray[np.str_], share: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Draw a share of every class to set aside, whole files at a time so that no file is on both sides.

    Of a class with one file nothing is taken, of a class with more at least one file and never all.

    Args:
        labels: `(N,)` class of each clip.
        files: `(N,)` file that each clip is a stretch of; a file counts for the class of its first clip.
        share: Part of the files of a class, 0 to 1.
        rng: Where the draw comes from.

    Returns:
        `(N,)` mask of the clips that are set aside.
    """
    first = pd.Series(labels).groupby(files).first()  # sorted by file: the draw does not hang on the table's order
    taken: list[str] = []
    for label in sorted(set(first)):
        members = first.index[first == label].to_numpy(str)
        count = min(max(1, round(share * len(members))), len(members) - 1)
        taken += rng.permutation(members)[:count].tolist()
    return np.isin(files, taken)


def complete(
    labels: NDArray[np.str_], files: NDArray[np.str_], given: NDArray[np.str_] | None, seed: int
) -> NDArray[np.str_]:
    """Draw what is missing of train, valid and test: all (70/10/20), or validation (15 % of train)."""
    rng = np.random.default_rng(seed)
    split = np.full(len(labels), "train") if given is None else given.copy()
    if given is None:
        split[hold_out(labels, files, 0.2, rng)] = "test"
    if "valid" not in split:
        rest = np.flatnonzero(split == "train")
        share = 0.1 / 0.8 if given is None else 0.15
        split[rest[hold_out(labels[rest], files[rest], share, rng)]] = "valid"
    return split


def by_fold(folds: NDArray[np.str_], names: Sequence[str], test: str) -> NDArray[np.str_]:
    """Test on one fold, validate on the next (after the last the first), train on the others; "" stays ""."""
    valid = names[(names.index(test) + 1) % len(names)]
    split = np.where(folds == "", "", "train").astype("<U5")
    split[folds == test], split[folds == valid] = "test", "valid"
    return split


def draw_shots(
    labels: NDArray[np.str_], split: NDArray[np.str_], shots: int, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """A mask of at most `shots` clips of each label in train, and as many in valid."""
    keep = np.zeros(len(labels), bool)
    for part in ("train", "valid"):
        for label in sorted(set(labels[split == part].tolist())):
            members = np.flatnonzero((split == part) & (labels == label))
            keep[rng.permutation(members)[:shots]] = True
    return keep

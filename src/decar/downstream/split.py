"""The three splits: read from a column, made of folds, or drawn where the source gives none. No torch in here."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from decar.audio.groups import Labels
from decar.audio.scan import SPLIT_NAMES
from decar.errors import TaskError

SPLITS = ("train", "valid", "test")


def read_split(words: NDArray[np.str_], where: str) -> NDArray[np.str_]:
    """Words in any usual spelling as train, valid and test; "" stays "".

    Raises:
        TaskError: A word is unknown; `where` names the column.
    """
    split = np.asarray([SPLIT_NAMES.get(word, word) for word in np.char.lower(words).tolist()])
    unknown = sorted(set(words[~np.isin(split, ["", *SPLITS])].tolist()))
    if unknown:
        raise TaskError(
            f"{where} has unknown values {quoted(unknown)}; use train, valid, test, or nothing for clips to leave out"
        )
    return split


def by_fold(folds: NDArray[np.str_], test: str, where: str) -> NDArray[np.str_]:
    """Test on one fold, validate on the next (after the last the first), train on the others; "" stays "".

    Raises:
        TaskError: There is no such fold, or there are fewer than three; `where` names the table.
    """
    names = sorted(set(folds.tolist()) - {""}, key=lambda name: (len(name), name))  # 10 after 9
    if test not in names or len(names) < 3:
        raise TaskError(
            f"task.fold={test}, but the folds of {where} are {quoted(names, 12)}; name one of three or more"
        )
    valid = names[(names.index(test) + 1) % len(names)]
    split = np.where(folds == "", "", "train").astype("<U5")
    split[folds == test], split[folds == valid] = "test", "valid"
    return split


def quoted(words: Sequence[str], most: int = 5) -> str:
    """The first words in quotes, for a message."""
    return ", ".join(f"'{word}'" for word in words[:most]) + (", …" if len(words) > most else "")


def hold_out(labels: Labels, groups: NDArray[np.str_], share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Draw a share of every class to set aside, by whole groups.

    Where each group has one class, the share holds for the groups of a class: nothing is taken of one group, and of
    more at least one and never all. Where groups have clips of several classes (a speaker says all words), or clips
    have several labels, groups are taken while that brings the classes' shares nearer to `share`; no class loses all
    its clips.

    Args:
        labels: `(N,)` class of each clip, or `(N, C)` which labels it has.
        groups: `(N,)` name of the group of each clip, its file say.
        share: Part to set aside, 0 to 1.
        rng: Where the draw comes from.

    Returns:
        `(N,)` mask of the clips that are set aside.
    """
    names, group = np.unique(groups, return_inverse=True)  # sorted: the draw does not depend on the table's order
    if labels.ndim == 2:  # not by their sets: most of these may be there once
        clip, y = np.nonzero(labels)
        y = np.unique(y, return_inverse=True)[1]
    else:
        clip, y = np.arange(len(labels)), np.unique(labels, return_inverse=True)[1]
    counts = np.zeros((len(names), y.max(initial=-1) + 1), np.int64)
    np.add.at(counts, (group[clip], y), 1)
    draw = _by_class if ((counts > 0).sum(axis=1) == 1).all() else _by_balance
    return np.isin(group, draw(counts, share, rng))


def _by_class(counts: NDArray[np.int64], share: float, rng: np.random.Generator) -> list[int]:
    """Groups to set aside, of `(G, C)` clips a group and class, where each has one class."""
    taken: list[int] = []
    for column in counts.T:
        members = np.flatnonzero(column)
        count = min(max(1, round(share * len(members))), len(members) - 1)
        taken += rng.permutation(members)[:count].tolist()
    return taken


def _by_balance(counts: NDArray[np.int64], share: float, rng: np.random.Generator) -> list[int]:
    """Groups to set aside, of `(G, C)` clips a group and class, where some have several classes.

    In random order a group is taken if the sum over classes of |part set aside - share| shrinks.
    """
    total = counts.sum(axis=0)
    now = np.zeros(counts.shape[1])

    def distance(held: NDArray[np.float64]) -> float:
        return float(np.abs(held / total - share).sum()) if (held < total).all() else np.inf

    taken: list[int] = []
    order = rng.permutation(len(counts)).tolist()
    for i in order:
        if distance(now + counts[i]) < distance(now):
            taken, now = [*taken, i], now + counts[i]
    if not taken:  # all are larger than the share: the one that is nearest to it
        best = min(order, key=lambda i: distance(counts[i].astype(np.float64)))
        taken = [best] if np.isfinite(distance(counts[best].astype(np.float64))) else []
    return taken


def complete(labels: Labels, groups: NDArray[np.str_], given: NDArray[np.str_] | None, seed: int) -> NDArray[np.str_]:
    """Draw the parts that are missing by whole groups: train, valid and test (70/10/20), or valid (15 % of train).

    `labels` are those of `hold_out`.
    """
    rng = np.random.default_rng(seed)
    split = np.full(len(labels), "train") if given is None else given.copy()
    if given is None:
        split[hold_out(labels, groups, 0.2, rng)] = "test"
    if "valid" not in split:
        rest = np.flatnonzero(split == "train")
        share = 0.1 / 0.8 if given is None else 0.15
        split[rest[hold_out(labels[rest], groups[rest], share, rng)]] = "valid"
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

"""What `clusters.parquet` tells: sizes over the epochs, flow of clips between assignments, purity against labels.

Letters: `N` clips, `K` clusters, `H` clusterings.
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from decar.audio.recorded import AT
from decar.clustering.stats import nmi
from decar.digests import read_parquet
from decar.errors import DecarError, one_line

log = logging.getLogger(__name__)

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
MAX_EPOCHS = 12  # assignments that are shown one by one; of more, evenly spaced ones, the first and the last among them
MAX_FLOW = 96  # rows and columns of a flow matrix; the smallest clusters share the last one
NOT_LABELS = ("path", "start", "duration", AT)
MAX_ROWS = 50_000_000  # of the log that are read: of a longer one the last epochs
KEY = ("clip", "start", "duration")  # tell clips apart


@dataclass(frozen=True)
class Assignments:
    """The pseudo-labels of one clustering in all epochs that it was logged in.

    Attributes:
        clips: Who is where: a row a clip, with the columns of `KEY` that the log has.
        epochs: In rising order.
        labels: `(epochs, N)` int64.
        skipped: Earlier epochs that were not read, for the memory's sake.
        damaged: Files that could not be read.
    """

    clips: pd.DataFrame
    epochs: list[int]
    labels: NDArray[np.int64]
    skipped: int = 0
    damaged: tuple[str, ...] = ()


def read_assignments(folder: Path) -> list[Assignments]:
    """The clusterings of a run, from its `clusters.parquet`.

    A clustering that began late (`labels=both`), or had other clips before, starts where its last clips start. Each
    damaged file is named in the log, and the others are read.

    Raises:
        DecarError: There is none that can be read.
    """
    if not folder.exists():
        raise DecarError(f"{folder}: not there; the run was stopped before its first epoch ended")
    last: dict[int, Assignments] = {}
    damaged: list[str] = []
    files, n_read, n_rows = sorted(folder.glob("*.parquet")), 0, 0
    while files and (n_read < 2 or n_rows < MAX_ROWS):
        file = files.pop()
        try:
            table = read_parquet(file)
            for number, part in table.groupby("clustering", sort=True):
                _prepend(last, int(str(number)), part.reset_index(drop=True))
            n_read, n_rows = n_read + 1, n_rows + len(table)
        except Exception as error:  # pyarrow raises half a dozen kinds for a damaged file
            log.warning("%s is damaged (%s): its epoch is left out", file, one_line(error))
            damaged.append(file.name)
    if not last:
        raise DecarError(f"{folder}: holds no assignment{': ' + ', '.join(damaged) + ' damaged' if damaged else ''}")
    return [replace(last[number], skipped=len(files), damaged=tuple(damaged)) for number in sorted(last)]


def _prepend(known: dict[int, Assignments], number: int, part: pd.DataFrame) -> None:
    """Put the assignment of an earlier epoch before the later ones, if it is of the same clips."""
    clips = part[[name for name in KEY if name in part]]
    labels, epoch = part["pseudo_label"].to_numpy(np.int64)[None], int(part["epoch"].iloc[0])
    later = known.get(number)
    if later is None:
        known[number] = Assignments(clips, [epoch], labels)
    elif clips.equals(later.clips):
        known[number] = Assignments(clips, [epoch, *later.epochs], np.concatenate([labels, later.labels]))


def spaced(n: int, most: int) -> list[int]:
    """At most `most` of `range(n)`, evenly spaced, the first and the last among them.

    >>> spaced(3, 12), spaced(100, 4)
    ([0, 1, 2], [0, 33, 66, 99])
    """
    return list(range(n)) if n <= most else [int(i) for i in np.linspace(0, n - 1, most).round()]


def sizes(found: Assignments) -> dict[str, Any]:
    """Sizes of the non-empty clusters: their quantiles in every epoch, and all of them in some epochs.

    Returns:
        `epochs`, `n_clusters`, `quantiles` (a list an epoch) and `shown`: `{epoch: sizes, largest first}`.
    """
    counts = [np.sort(np.unique(row, return_counts=True)[1])[::-1] for row in found.labels]
    return {
        "epochs": found.epochs,
        "n_clusters": [len(count) for count in counts],
        "quantiles": [np.quantile(count, QUANTILES).round(1).tolist() for count in counts],
        "shown": {found.epochs[i]: counts[i].tolist() for i in spaced(len(counts), MAX_EPOCHS)},
    }


def flows(found: Assignments) -> list[dict[str, Any]]:
    """`flow` between consecutive assignments, with their epochs; of many, evenly spaced pairs with the last one."""
    pairs = spaced(len(found.epochs) - 1, MAX_EPOCHS)
    return [
        {"from": found.epochs[i], "to": found.epochs[i + 1], **flow(found.labels[i], found.labels[i + 1])}
        for i in pairs
    ]


def flow(before: NDArray[np.int64], after: NDArray[np.int64]) -> dict[str, Any]:
    """How many clips went from each cluster to each.

    Cluster numbers mean nothing from one assignment to the next: rows are the earlier clusters, largest first, and
    columns are put so that as many clips as possible lie on the diagonal (a linear assignment).

    Returns:
        `rows`, `columns`: names of the clusters, "others" for the smallest of many; `counts`: a list a row; `stay`: the
        share of clips on the diagonal, of all clips; `nmi`, None for labels that were kept from the epoch before.
    """
    (rows, row), (columns, column) = _largest(before), _largest(after)
    cells = np.bincount(row * len(columns) + column, minlength=len(rows) * len(columns))
    counts = cells.reshape(len(rows), len(columns))
    paired = linear_sum_assignment(-counts)
    partner: dict[int, int] = dict(zip(paired[0].tolist(), paired[1].tolist(), strict=True))
    rest = [c for c in range(counts.shape[1]) if c not in set(partner.values())]
    order = np.array([partner[r] for r in range(len(counts)) if r in partner] + rest)
    placed = counts[:, order]
    return {
        "rows": rows,
        "columns": [columns[i] for i in order.tolist()],
        "counts": placed.tolist(),
        "stay": float(sum(counts[r, c] for r, c in partner.items()) / len(before)),
        "nmi": None if np.array_equal(before, after) else nmi(before, after),  # the same numbers: not clustered anew
    }


def _largest(labels: NDArray[np.int64]) -> tuple[list[str], NDArray[np.int64]]:
    """Names of the clusters, largest first, and each clip's place among them.

    The smallest beyond `MAX_FLOW` share the last place.
    """
    values, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    place = np.empty(len(values), np.int64)
    place[order] = np.minimum(np.arange(len(values)), MAX_FLOW - 1)
    names = [str(value) for value in values[order].tolist()]
    if len(names) > MAX_FLOW:
        names[MAX_FLOW - 1 :] = [f"{len(names) - MAX_FLOW + 1} others"]
    return names, place[inverse.reshape(-1)]


def label_columns(table: pd.DataFrame, first: str | None = None) -> list[str]:
    """Columns of a manifest that sort clips into kinds: two values or more, and not a value of its own for most clips.

    Args:
        table: A row a clip.
        first: The column to put first: the one that the run watched.
    """
    found = []
    for name in table.columns:
        values = table[name][known(table[name])]
        kinds = values.nunique()
        if name not in NOT_LABELS and not str(name).startswith("split") and 2 <= kinds <= max(2, len(values) // 2):
            found.append(str(name))
    return sorted(found, key=lambda name: name != first)


def known(column: "pd.Series[Any]") -> NDArray[np.bool_]:
    """`(N,)`: where a label column has a label."""
    mask: NDArray[np.bool_] = (column.notna() & (column.astype(str) != "")).to_numpy(bool)
    return mask


@dataclass(frozen=True)
class Purity:
    """How alike the labelled clips of one cluster are: `value` is the share of the commonest label, `top`.

    `n` clips of the cluster have a label; with none, `value` is None.
    """

    value: float | None
    top: str
    n: int


def purity(clusters: NDArray[np.int64], column: "pd.Series[Any]") -> dict[int, Purity]:
    """Purity of every cluster against a label column; clips without a label do not count.

    >>> purity(np.array([0, 0, 0, 1]), pd.Series(["a", "a", "b", ""]))[0].value
    0.6666666666666666
    """
    mask = known(column)
    codes, words = pd.factorize(column[mask].astype(str), sort=True)
    pairs = pd.DataFrame({"cluster": clusters[mask], "word": codes}).value_counts(sort=False).reset_index(name="n")
    best = pairs.sort_values(["n", "word"], ascending=[False, True], kind="stable").drop_duplicates("cluster")
    sums = pairs.groupby("cluster")["n"].sum()
    found = {cluster: Purity(None, "", 0) for cluster in np.unique(clusters).tolist()}
    for cluster, word, n in best[["cluster", "word", "n"]].to_numpy().tolist():
        total = int(sums[cluster])
        found[cluster] = Purity(n / total, str(words[word]), total)
    return found


def agreement(clusters: NDArray[np.int64], column: "pd.Series[Any]") -> dict[str, float]:
    """Of a whole assignment: purity (labelled clips under their cluster's commonest label) and NMI with the labels."""
    mask = known(column)
    each = purity(clusters, column).values()
    right = sum(p.value * p.n for p in each if p.value is not None)
    return {"purity": right / int(mask.sum()), "nmi": nmi(clusters[mask], column.astype(str).to_numpy()[mask])}

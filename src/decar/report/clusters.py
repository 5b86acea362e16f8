"""What `clusters.parquet` tells: sizes over the epochs, flow of clips between assignments, purity against labels.

Letters: `N` clips, `K` clusters, `H` clusterings.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from decar.clustering.stats import nmi
from decar.errors import DecarError

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
MAX_EPOCHS = 12  # assignments that are shown one by one; of more, evenly spaced ones, the first and the last among them
MAX_FLOW = 96  # rows and columns of a flow matrix; the smallest clusters share the last one
NOT_LABELS = ("path", "start", "duration")
KEY = ("clip", "start", "duration")  # tell clips apart


@dataclass(frozen=True)
class Assignments:
    """The pseudo-labels of one clustering in all epochs that it was logged in.

    Attributes:
        clips: Who is where: a row a clip, with the columns of `KEY` that the log has.
        epochs: In rising order.
        labels: `(epochs, N)` int64.
    """

    clips: pd.DataFrame
    epochs: list[int]
    labels: NDArray[np.int64]


def read_assignments(folder: Path) -> list[Assignments]:
    """The clusterings of a run, from its `clusters.parquet`.

    A clustering that began late (`labels=both`), or had other clips before, starts where its last clips start.

    Raises:
        DecarError: There is none, or it cannot be read.
    """
    if not folder.exists():
        raise DecarError(f"{folder}: not there; the run was stopped before its first epoch ended")
    try:
        table = pd.read_parquet(folder)
        found = [_one(part) for _, part in table.groupby("clustering", sort=True)]
    except Exception as error:  # pyarrow raises half a dozen kinds for a damaged part
        raise DecarError(f"{folder}: cannot be read ({' '.join(str(error).split())[:200]})") from error
    if not found:
        raise DecarError(f"{folder}: holds no assignment")
    return found


def _one(table: pd.DataFrame) -> Assignments:
    epochs = np.unique(table["epoch"].to_numpy(np.int64)).tolist()
    parts = {epoch: table[table["epoch"] == epoch].reset_index(drop=True) for epoch in epochs}
    last = parts[max(parts)]
    key = [name for name in KEY if name in last]
    same = {epoch: part for epoch, part in parts.items() if part[key].equals(last[key])}
    labels = np.stack([part["pseudo_label"].to_numpy(np.int64) for part in same.values()])
    return Assignments(last[key], list(same), labels)


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
        share of clips on the diagonal, of all clips; `nmi`.
    """
    rows, columns = _largest(before), _largest(after)
    counts = np.zeros((max(rows.values()) + 1, max(columns.values()) + 1), np.int64)
    np.add.at(counts, ([rows[x] for x in before.tolist()], [columns[x] for x in after.tolist()]), 1)
    paired = linear_sum_assignment(-counts)
    partner: dict[int, int] = dict(zip(paired[0].tolist(), paired[1].tolist(), strict=True))
    rest = [c for c in range(counts.shape[1]) if c not in set(partner.values())]
    order = np.array([partner[r] for r in range(len(counts)) if r in partner] + rest)
    placed = counts[:, order]
    return {
        "rows": _names(rows),
        "columns": [_names(columns)[i] for i in order.tolist()],
        "counts": placed.tolist(),
        "stay": float(sum(counts[r, c] for r, c in partner.items()) / len(before)),
        "nmi": nmi(before, after),
    }


def _largest(labels: NDArray[np.int64]) -> dict[int, int]:
    """Cluster → its place, largest first; the smallest beyond `MAX_FLOW` share the last place."""
    names, counts = np.unique(labels, return_counts=True)
    ranked = names[np.argsort(-counts, kind="stable")].tolist()
    return {name: min(place, MAX_FLOW - 1) for place, name in enumerate(ranked)}


def _names(places: Mapping[int, int]) -> list[str]:
    by_place: dict[int, list[int]] = {}
    for name, place in places.items():
        by_place.setdefault(place, []).append(name)
    return [str(names[0]) if len(names) == 1 else f"{len(names)} others" for _, names in sorted(by_place.items())]


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
    mask, words = known(column), column.astype(str).to_numpy()
    found = {}
    for cluster in np.unique(clusters).tolist():
        names, counts = np.unique(words[(clusters == cluster) & mask], return_counts=True)
        best = int(counts.argmax()) if len(counts) else -1
        share = float(counts[best] / counts.sum()) if len(counts) else None
        found[cluster] = Purity(share, str(names[best]) if len(counts) else "", int(counts.sum()))
    return found


def agreement(clusters: NDArray[np.int64], column: "pd.Series[Any]") -> dict[str, float]:
    """Of a whole assignment: purity (labelled clips under their cluster's commonest label) and NMI with the labels."""
    mask = known(column)
    each = purity(clusters, column).values()
    right = sum(p.value * p.n for p in each if p.value is not None)
    return {"purity": right / int(mask.sum()), "nmi": nmi(clusters[mask], column.astype(str).to_numpy()[mask])}

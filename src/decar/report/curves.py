"""The figures of `metrics.csv` as series: a value at each step that has one."""

import math
from pathlib import Path
from typing import Any

from decar.errors import DecarError
from decar.pretrain.logger import read_rows

# what a curve is called on the page, and what to look for in it
KNOWN = {
    "loss_epoch": ("Loss", "cross-entropy of the pseudo-labels; starts anew where the heads are renewed"),
    "pseudo_accuracy": ("Pseudo-label accuracy", "share of crops whose cluster is predicted"),
    "nmi": ("NMI to the assignment before", "1: nothing moves any more; only where both epochs were clustered anew"),
    "probe_accuracy": ("Online probe", "nearest-neighbour accuracy on the watched label; should rise"),
    "n_clusters": ("Clusters", "non-empty ones, of all clusterings"),
    "entropy": ("Entropy of the cluster sizes", "1: all of one size; near 0: one cluster has swallowed the rest"),
    "effective_rank": ("Effective rank of what is clustered", "dimensions in use; a fall to 1 is collapse"),
    "embedding_rank": ("Effective rank of the embedding", "dimensions in use; should rise"),
}
MAX_POINTS = 2000  # of a curve; of a longer one every n-th


def curves(run: Path) -> list[dict[str, Any]]:
    """The curves of a run, known ones first; `loss_step` is drawn with the loss.

    Raises:
        DecarError: There is no metrics file, or there is nothing in it.
    """
    file = run / "metrics.csv"
    try:
        rows = read_rows(file)
    except (OSError, ValueError) as error:
        raise DecarError(f"{file}: cannot be read ({error})") from error
    if not rows:
        raise DecarError(f"{file}: {'holds no figures' if file.is_file() else 'not there'}; was logger=csv left out?")
    names = {name for row in rows for name in row} - {"epoch", "step", "loss_step"}
    order = [name for name in KNOWN if name in names] + sorted(names - set(KNOWN))
    found = []
    for name in order:
        title, hint = KNOWN.get(name, (name.replace("_", " "), ""))
        series: dict[str, Any] = {"name": name, "title": title, "hint": hint, **_series(rows, name)}
        if name == "loss_epoch":
            series["fine"] = _series(rows, "loss_step")
        if series["y"]:
            found.append(series)
    return found


def _series(rows: list[dict[str, Any]], name: str) -> dict[str, list[Any]]:
    """Steps, epochs and values where there is a finite one."""
    points = []
    for row in rows:
        try:
            value = float(row[name])
        except (KeyError, ValueError):
            continue
        if math.isfinite(value):
            points.append((int(row["step"]) + 1, int(float(row.get("epoch", 0))) + 1, value))
    points = points[::-1][:: max(1, math.ceil(len(points) / MAX_POINTS))][::-1]  # the last one stays
    steps, epochs, values = ([point[i] for point in points] for i in range(3))
    return {"x": steps, "epoch": epochs, "y": values}

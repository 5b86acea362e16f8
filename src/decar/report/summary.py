"""The figures of a page's first section and of its bars: what there is, how a run ended, what its encoder reaches."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import pandas as pd

from decar.metrics import epochs_of, last_figures, read_rows
from decar.report.folder import ENCODERS

OWN = ENCODERS["decar"]
LOG = "train.log"
_EPOCH = re.compile(r"^\[[\d:]+\] epoch \d+/.* in (\d+) s$", re.M)  # as `decar.pretrain.EpochLine` writes it


def of_sounds(table: pd.DataFrame) -> dict[str, Any]:
    """How many recordings and clips there are, and how many seconds of sound, in a table with `path` and `duration`."""
    return {"recordings": table["path"].nunique(), "seconds": float(table["duration"].sum()), "clips": len(table)}


def of_run(run: Path) -> dict[str, Any]:
    """How a run ended, as far as its folder says: `epochs`, `trained` (s), `figures`, the last value of each metric."""
    found: dict[str, Any] = {"epochs": None, "trained": None, "figures": {}}
    try:
        rows = read_rows(run / "metrics.csv")
        found["figures"] = last_figures(rows)
        found["epochs"] = epochs_of(rows) or None
        times = _EPOCH.findall((run / LOG).read_text(encoding="utf-8", errors="replace"))
        found["trained"] = sum(map(int, times)) if times else None
    except (OSError, ValueError):  # the section of the curves says what is wrong with the figures
        pass
    return found


def bars(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Results by task and encoder, over seeds and folds.

    Args:
        rows: Of `results_of`.

    Returns:
        For each task, mode and protocol: `task`, `how`, `metric`; `valid`, this encoder's mean on validation; `chance`,
        what naming the commonest class of the test split would reach, None where that is unknown; `encoders`, their
        names with mean, least and largest test value.
    """
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["title"], f"{row['mode']}, {row['protocol']}", row["metric"]), []).append(row)
    return [
        {"task": task, "how": how, "metric": metric, "chance": _chance(metric, group), "encoders": _values(group),
         "valid": mean(row["valid"] for row in group if row["encoder"] == OWN)}
        for (task, how, metric), group in groups.items()
    ]  # fmt: skip


def _values(group: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    names = sorted({row["encoder"] for row in group}, key=lambda name: ([*ENCODERS.values(), name].index(name), name))
    values = {name: [row["value"] for row in group if row["encoder"] == name] for name in names}
    return {name: [mean(found), min(found), max(found)] for name, found in values.items()}


def _chance(metric: str, group: Sequence[Mapping[str, Any]]) -> float | None:
    """The mean share of the commonest class of the test split, which is the accuracy of always naming it."""
    counts = [[sum(line) for line in row["confusion"]] for row in group]
    known = metric == "accuracy" and all(sum(classes) for classes in counts)
    return mean(max(classes) / sum(classes) for classes in counts) if known else None


def best(found: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The bars of the way of judging that validation likes best, as means over its tasks; None without results.

    Of the ways (mode, protocol and measure) that were tried on most tasks, the one with the best mean on validation.

    Returns:
        `how`, `metric`, `tasks` (names), `chance`, and `encoders`: the mean of each that has a result for all tasks.
    """
    ways: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for one in found:
        ways.setdefault((one["how"], one["metric"]), []).append(one)
    if not ways:
        return None
    (how, metric), chosen = max(ways.items(), key=lambda way: (len(way[1]), mean(one["valid"] for one in way[1])))
    names = [name for name in chosen[0]["encoders"] if all(name in one["encoders"] for one in chosen)]
    chances = [one["chance"] for one in chosen if one["chance"] is not None]
    return {
        "how": how, "metric": metric, "tasks": [one["task"] for one in chosen],
        "chance": mean(chances) if len(chances) == len(chosen) else None,
        "encoders": {name: mean(one["encoders"][name][0] for one in chosen) for name in names},
    }  # fmt: skip

"""When and where: clusters by hour of the day and by site, and along each recording.

Letters: `N` clips.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from decar.audio import Manifest
from decar.audio.recorded import AT, SITE

MAX_ROWS, MAX_SITES = 40, 40  # clusters and sites of the pictures of hours and sites
MAX_RECORDINGS, MAX_SEGMENTS = 1000, 100_000  # that have a time line, all together; some 4 bytes a segment

HOURS = {f"{hour:02d}" for hour in range(24)}

Runs = list[list[int]]  # values that follow one another, as pairs of a value and how often it is repeated


def texts_of(table: pd.DataFrame, column: str) -> pd.Series:
    """The texts of a column, "" where there is none."""
    return table[column].fillna("").astype(str) if column in table else pd.Series("", table.index)


def hours_of(table: pd.DataFrame) -> list[int]:
    """The hour of the recorder's clock in which each clip begins; -1 where that is not known."""
    texts = texts_of(table, AT)
    return [int(text[11:13]) if text[10:11] in ("T", " ") and text[11:13] in HOURS else -1 for text in texts]


def hours_and_sites(table: pd.DataFrame, labels: NDArray[np.int64]) -> dict[str, Any]:
    """How many clips of each cluster there are in each hour of the day, and at each site, the largest clusters first.

    Returns:
        `clusters`; `hours`, 24 counts a cluster; `sites`, their names; `at_sites`, a count a site and cluster. Lists
        without entries where nothing is known.
    """
    clusters, counts = np.unique(labels, return_counts=True)
    clusters = clusters[np.argsort(-counts, kind="stable")][:MAX_ROWS]
    hours = np.array(hours_of(table))
    known = bool((hours >= 0).any())
    sites = texts_of(table, SITE)
    names = sites[sites != ""].value_counts().index[:MAX_SITES].sort_values().tolist()
    return {
        "clusters": clusters.tolist(),
        "hours": [np.bincount(hours[(labels == c) & (hours >= 0)], minlength=24).tolist() for c in clusters if known],
        "sites": names if len(names) > 1 else [],
        "at_sites": [[int(((labels == c) & (sites == name)).sum()) for name in names] for c in clusters],
    }


def time_lines(table: pd.DataFrame, labels: NDArray[np.int64]) -> dict[str, Any]:
    """The clusters along every recording of two segments or more, the most varied recording first.

    Varied by the effective number of clusters: the exponential of the entropy of their shares of the time.

    Args:
        table: `N` segments with `path`, `start` and `duration` (s).
        labels: `(N,)` their clusters.

    Returns:
        `recordings`, a mapping each: `path`; `begun`, when it begins by the recorder's clock (ISO 8601), or "";
        `starts`, the differences between one start and the next, and `lengths`, as `Runs` of milliseconds; `clusters`.
        Beyond `MAX_RECORDINGS` or `MAX_SEGMENTS` the least varied are left out: `n` is the number of all.
    """
    rows = table[["path", "start", "duration"]].assign(cluster=labels, at=table.get(AT, ""))
    rows = rows[rows["path"].duplicated(keep=False)]
    times = rows.groupby(["path", "cluster"])["duration"].sum()
    shares = times / times.groupby("path").transform("sum")
    varied = np.exp(-(shares * np.log(shares.clip(lower=1e-12))).groupby("path").sum())
    sizes, kept, left = rows["path"].value_counts(), list[str](), MAX_SEGMENTS
    for path in varied.sort_values(ascending=False, kind="stable").index:
        if sizes[path] <= left and len(kept) < MAX_RECORDINGS:
            kept.append(path)
            left -= sizes[path]
    parts = dict(list(rows[rows["path"].isin(kept)].sort_values("start", kind="stable").groupby("path")))
    return {"n": len(varied), "recordings": [_line(path, parts[path]) for path in kept]}


def _line(path: str, part: pd.DataFrame) -> dict[str, Any]:
    starts, lengths = ((part[name].to_numpy(float) * 1000).round().astype(np.int64) for name in ("start", "duration"))
    begun = began(str(part["at"].iloc[0])[:19], float(part["start"].iloc[0]))
    return {
        "path": path, "begun": begun.isoformat(timespec="seconds") if begun else "",
        "starts": _runs(np.diff(starts, prepend=0)), "lengths": _runs(lengths), "clusters": part["cluster"].tolist(),
    }  # fmt: skip


def began(at: str, start: float) -> datetime | None:
    """When a recording began whose clip at `start` (s) begins `at` (ISO 8601); None where that is no time."""
    try:
        return datetime.fromisoformat(at) - timedelta(seconds=start)
    except (ValueError, OverflowError):
        return None


def _runs(values: NDArray[np.int64]) -> Runs:
    """A list in short, where the same value is often repeated.

    >>> _runs(np.array([0, 5, 5, 5]))
    [[0, 1], [5, 3]]
    """
    firsts = np.flatnonzero(np.diff(values, prepend=values[:1] - 1))
    counts = np.diff(firsts, append=len(values))
    return [[int(value), int(count)] for value, count in zip(values[firsts], counts, strict=True)]


def segments_of(lines: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """`path`, `start` and `duration` (s) of all segments of time lines, in their order.

    Raises:
        KeyError, TypeError, ValueError: They are not as `time_lines` makes them.
    """
    parts, left = [pd.DataFrame({"path": [], "start": [], "duration": []}).astype({"path": str})], MAX_SEGMENTS
    for line in lines:
        starts, lengths = (_values(line[name], left) / 1000 for name in ("starts", "lengths"))
        parts.append(pd.DataFrame({"path": str(line["path"]), "start": starts.cumsum(), "duration": lengths}))
        left -= len(starts)
    return pd.concat(parts[1:] or parts, ignore_index=True)


def _values(runs: Runs, most: int) -> NDArray[np.int64]:
    """The list that `_runs` put in short, of at most so many values."""
    values, counts = np.array(runs, np.int64).reshape(-1, 2).T
    if counts.clip(min=0).astype(float).sum() > most:
        raise ValueError(f"more than {MAX_SEGMENTS} segments")
    return np.repeat(values, counts)


def clip_names(clips: Manifest, table: pd.DataFrame) -> list[str]:
    """The path of each clip; of a part of a recording with the time at which it starts.

    Args:
        clips: Some clips.
        table: All of them.
    """
    several = table["path"].value_counts().gt(1)
    return [
        f"{path} · {clock(start)}" if several[path] or start > 0 else path
        for path, (start, _) in zip(clips.table["path"], clips.stretches, strict=True)
    ]


def clock(seconds: float) -> str:
    """Minutes and seconds, with hours where there are some.

    >>> clock(5.0), clock(754.0), clock(3605.0)
    ('0:05', '12:34', '1:00:05')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

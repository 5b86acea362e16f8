"""Which clips belong together: what one speaker said or one recorder heard must not be learned from and judged on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from decar.audio.columns import find_column, no_column, normal
from decar.errors import ManifestError

GROUPS = ("speaker", "recording", "source", "actor", "video", "artist", "instrument", "location", "session", "group",
          "place", "site", "subject", "client", "recordist")  # fmt: skip
AUTO = "auto"
SLACK = 0.02  # s by which stretches that follow one another may overlap: tables round to hundredths

Texts = npt.NDArray[np.str_]
Labels = npt.NDArray[np.str_] | npt.NDArray[np.bool_]


def group_columns(columns: Iterable[object]) -> list[str]:
    """The columns that by their name say who or what was recorded, or where; `speaker_id` is as good as `speaker`."""
    return [str(column) for column in columns if normal(column).removesuffix("_id") in GROUPS]


def together(
    table: pd.DataFrame, labels: Labels, group: str | None, *, label: str | None = None, parts: int = 2
) -> tuple[Texts, list[str], list[str]]:
    """Groups of clips that are never divided: clips of one file, and of one value of the grouping columns.

    Clips that are linked by a chain (the same speaker in one, the same place in the next) are one group. An empty cell
    links nothing.

    Args:
        table: `N` clips with a column `path`.
        labels: `(N,)` class of each, or `(N, C)` which labels it has.
        group: A column; "auto" for those that `group_columns` finds, without the ones that leave nothing to divide;
            None for none.
        label: The column that the labels come from, which "auto" does not take.
        parts: Of how many parts each is to get groups of a class.

    Returns:
        `(N,)` name of each clip's group (the first path in it), the columns used, and the columns of "auto" left out.

    Raises:
        ManifestError: There is no such column.
    """
    files = table["path"].to_numpy(str)
    plain = np.array([os.path.normpath(file) for file in files.tolist()], str)
    if (plain != files).any():  # a file may be spelled in two ways
        files = _merged(files, plain)
    if group is None:
        return files, [], []
    chosen = group_columns(table.columns) if group == AUTO else [find_column(table.columns, group)]
    groups, used, left_out = files, list[str](), list[str]()
    for column in chosen:
        if column is None:
            raise ManifestError(no_column(table.columns, group))
        if column == label and group == AUTO:
            continue
        merged = _merged(groups, table[column].fillna("").astype(str).str.strip().to_numpy(str))
        if group == AUTO and not _divisible(merged, labels, parts):
            left_out.append(column)
            continue
        groups, used = merged, [*used, column]
    return groups, used, left_out


def shared_sound(
    paths: Sequence[str], stretches: Sequence[tuple[float, float | None]], splits: Sequence[str]
) -> dict[int, str]:
    """Clips of which a part is in a clip of another split too, and that split; of two clips the one that begins later.

    Args:
        paths: `N`, the file of each clip.
        stretches: Start and duration (s, None: to the end) of each.
        splits: Of each, "" where it has none.
    """
    begin = np.array([start for start, _ in stretches], np.float64)
    end = begin + np.array([np.inf if seconds is None else seconds for _, seconds in stretches])
    table = pd.DataFrame({"path": map(os.path.normpath, paths), "begin": begin, "end": end, "split": list(splits)})
    table = table.sort_values(["path", "begin"], kind="stable")
    found = dict[int, str]()
    for split in sorted({*splits} - {""}):
        reached = table["end"].where(table["split"] == split, -np.inf).groupby(table["path"], sort=False).cummax()
        both = (reached > table["begin"] + SLACK) & ~table["split"].isin(["", split])
        found |= dict.fromkeys(table.index[both].tolist(), split)
    return found


def _merged(groups: Texts, values: Texts) -> Texts:
    """Groups that share a value become one, named by the first of their names."""
    names, group = np.unique(groups, return_inverse=True)
    _, value = np.unique(values, return_inverse=True)
    linked = values != ""
    edges = (np.ones(int(linked.sum())), (group[linked], len(names) + value[linked]))
    size = len(names) + int(value.max(initial=-1)) + 1
    _, component = connected_components(coo_array(edges, shape=(size, size)), directed=False)
    first = pd.Series(names).groupby(component[: len(names)]).transform("min").to_numpy(str)
    merged: Texts = first[group]
    return merged


def _divisible(groups: Texts, labels: Labels, parts: int) -> bool:
    """Whether no group holds most clips, and half of the classes have a group for each part."""
    sizes = pd.Series(groups).value_counts()
    clip, place = np.nonzero(labels) if labels.ndim == 2 else (slice(None), labels)
    per_class = pd.Series(groups[clip]).groupby(place).nunique()
    return bool(sizes.max() <= len(groups) / 2 and (per_class >= parts).mean() >= 0.5)

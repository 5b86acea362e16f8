"""What the columns of a table mean: which one names the files, and which say where a clip begins and ends.

A name is taken for what it says whatever its capitals, spaces and punctuation (`Begin Time (s)`), where only one column
can be meant; otherwise the columns are refused by name. What was taken for what goes into the log. A column that looks
like a time and is not understood is refused too: leaving it out would silently embed whole files in place of stretches.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from decar.errors import ManifestError

log = logging.getLogger(__name__)

PATH_NAMES = {
    "path", "file", "filename", "file_name", "filepath", "file_path", "fname", "audio", "audio_file", "audio_path",
    "audio_filepath", "audio_file_path", "audio_filename", "wav", "wav_file", "wav_path", "wav_filename", "sound",
    "sound_file", "sound_path", "clip_path", "relative_path", "begin_path", "begin_file",
}  # fmt: skip
_QUANTITIES = {  # the words of a name, without units and _FILLERS → what it gives
    frozenset({"start"}): "start", frozenset({"begin"}): "start", frozenset({"onset"}): "start",
    frozenset({"end"}): "end", frozenset({"stop"}): "end", frozenset({"offset"}): "offset",
    frozenset({"duration"}): "duration", frozenset({"dur"}): "duration", frozenset({"delta"}): "duration",
    frozenset({"file", "offset"}): "file offset",
}  # fmt: skip
_FILLERS = {"time", "segment", "clip", "event"}
_UNITS = dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1.0)
_UNITS |= dict.fromkeys(("ms", "msec", "millisecond", "milliseconds"), 1e-3)
_LIKE_START = {"start", "begin", "onset", "tmin", "xmin", "t0"}
_LIKE_END = {"end", "stop", "tmax", "xmax", "t1"}
_LIKE_LENGTH = {"offset", "duration", "dur", "length", "len", "frames", "samples"}
_NO_TIME = {"hz", "khz", "freq", "frequency", "date", "year", "month", "day", "path", "file"}
_SLACK = 0.02  # s by which a duration and an end may disagree: both are rounded to hundredths

Floats = npt.NDArray[np.float64]


def normal(name: object) -> str:
    """A column name in lower case, its words joined by underscores.

    >>> normal(" Begin Time (s)"), normal("fileName")
    ('begin_time_s', 'file_name')
    """
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", str(name))
    return re.sub(r"[\W_]+", "_", words.casefold()).strip("_")


def find_column(columns: Iterable[object], name: str) -> str | None:
    """The column of that name, else the only one whose name differs in capitals, spaces or punctuation alone."""
    known = [str(column) for column in columns]
    if name in known:
        return name
    alike = [column for column in known if normal(column) == normal(name)]
    return alike[0] if len(alike) == 1 else None


def beside_ours(table: pd.DataFrame, ours: Collection[str]) -> pd.DataFrame:
    """The table with `table_` before each name that is one of ours, or that is there twice, so that none is lost."""
    names = [str(name) for name in table.columns]
    for i, name in enumerate(names):
        while names[i] in ours or names.count(names[i]) > 1:
            names[i] = f"table_{names[i]}"
        if name != names[i]:
            log.info("the column '%s' of the table is called '%s' here", name, names[i])
    return table.set_axis(names, axis=1)


def no_column(columns: Iterable[object], name: str) -> str:
    """That a column is not there, which there are, and which name is near."""
    known = [str(column) for column in columns]
    by_normal = {normal(column): column for column in known}
    near = difflib.get_close_matches(normal(name), list(by_normal), n=1)
    guess = f"; is '{by_normal[near[0]]}' meant?" if near else ""
    return f"no column '{name}' (columns: {', '.join(known)}){guess}"


def path_columns(columns: Iterable[object], wanted: str) -> list[str]:
    """The columns that may name the files: the one of the name that is wanted, or, of "path", those of usual names."""
    known = [str(column) for column in columns]
    found = find_column(known, wanted)
    if found is not None or wanted != "path":
        return [found] if found is not None else []
    return [column for column in known if normal(column) in PATH_NAMES]


def with_path(table: pd.DataFrame, wanted: str) -> tuple[pd.DataFrame, list[str]]:
    """The table with the column that names the files called `path`, and what was taken for it.

    Raises:
        ManifestError: No column can be meant, or several can.
    """
    found = path_columns(table.columns, wanted)
    option = "path_column (--path-column NAME, data.path_column=NAME, task.path_column=NAME)"
    if len(found) != 1:
        names = ", ".join(f"'{name}'" for name in found)
        what = f"{names} may all be the paths" if found else no_column(table.columns, wanted)
        raise ManifestError(f"{what}: name the column with the paths by {option}")
    [column] = found
    if column == "path":
        return table, []
    table, notes = _raven(table, column)
    renamed = table.drop(columns="path", errors="ignore").rename(columns={column: "path"})  # whatever else is called so
    return renamed, notes if column == wanted else [f"paths from '{column}'", *notes]


def _raven(table: pd.DataFrame, path: str) -> tuple[pd.DataFrame, list[str]]:
    """A selection table of Raven: a row for each view of a selection, times that count over all its files.

    Raises:
        ManifestError: It has several files and does not say where a selection lies in its own.
    """
    names = {normal(name): name for name in table.columns}
    ours = normal(path) in ("begin_file", "begin_path") and "begin_time_s" in names
    if ours and "file_offset_s" not in names and table[path].nunique() > 1:
        raise ManifestError(
            "Raven's 'Begin Time (s)' counts over all files of a sequence: add the measurement 'File Offset (s)'"
        )
    if not {"selection", "view"} <= names.keys():
        return table, []
    single = table.drop_duplicates(subset=[name for name in table.columns if name != names["view"]])
    single = single.reset_index(drop=True)
    views = len(table) - len(single)
    return single, [f"{views} rows of other views of a selection are left out"] if views else []


def with_stretches(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The table with its times as `start` and `duration` in seconds, and with `split` and `fold` so called.

    Returns:
        The table, and what was taken for what.

    Raises:
        ManifestError: A column could be meant in two ways, is not understood, or a row contradicts itself.
    """
    table, notes = _with_usual_names(table, ("split", "fold"))
    given = _given(table)
    _refuse_likes(table, given)
    for quantity in ("start", "duration"):  # already in seconds, or to be checked
        if quantity in given:
            table = table.assign(**{given[quantity]: seconds(table[given[quantity]], given[quantity], quantity)})
    if "end" in given:
        table = _end_to_duration(table, given)
    if "file offset" in given:
        place = seconds(table[given["file offset"]], given["file offset"], "start")
        table = table.assign(**{given["start"]: place}).drop(columns=given["file offset"])
    renamed = [f"{name} from '{column}'" for name, column in given.items() if name != column or name == "end"]
    names = {given[name]: name for name in ("start", "duration") if name in given}
    return table.rename(columns=names), notes + renamed


def _with_usual_names(table: pd.DataFrame, usual: Iterable[str]) -> tuple[pd.DataFrame, list[str]]:
    found = {find_column(table.columns, name): name for name in usual if name not in table.columns}
    names = {column: name for column, name in found.items() if column is not None}
    return table.rename(columns=names), [f"{name} from '{column}'" for column, name in names.items()]


def _meaning(name: str) -> tuple[str | None, float]:
    """What a column gives, by its name, and its unit in seconds."""
    words = normal(name).split("_")
    words = [part for word in words for part in re.split(r"(?<=start|begin)(?=time)|(?<=end)(?=time)", word)]
    unit = _UNITS.get(words[-1], 1.0)
    core = frozenset(words if words[-1] not in _UNITS else words[:-1]) - _FILLERS
    if core == {"delta"} and "time" not in words:
        return None, 1.0
    return _QUANTITIES.get(core), unit


def _given(table: pd.DataFrame) -> dict[str, str]:
    """Quantity (start, end, duration, file offset) → the column that gives it; the plain name comes first."""
    found: dict[str, list[str]] = {}
    for column in map(str, table.columns):
        quantity, _ = _meaning(column)
        if quantity is not None:
            found.setdefault(quantity, []).append(column)
    found = {quantity: [quantity] if quantity in columns else columns for quantity, columns in found.items()}
    offsets = found.pop("offset", [])
    if offsets and "end" not in found and normal(found.get("start", [""])[0]).startswith("onset"):
        found["end"] = offsets
    elif offsets and "start" not in found and "duration" in found:
        found["start"] = offsets
    if "duration" in found and found["duration"] != ["duration"] and not found.keys() & {"start", "end"}:
        del found["duration"]  # without a start `duration_s` is mostly the length of the file
    if "file offset" in found and not {"start", "end"} <= found.keys():
        del found["file offset"]
    for quantity, columns in found.items():
        if len(columns) > 1:
            names = ", ".join(f"'{name}'" for name in columns)
            raise ManifestError(f"{names} may all be the {quantity}: rename the one that is meant to '{quantity}'")
    return {quantity: columns[0] for quantity, columns in found.items()}


def _refuse_likes(table: pd.DataFrame, given: dict[str, str]) -> None:
    """Refuse a column of numbers that looks like a start or an end and is neither understood nor needed."""
    likes: set[str] = set() if "start" in given else set(_LIKE_START)
    if not given.keys() & {"end", "duration"}:
        likes |= _LIKE_END | (_LIKE_LENGTH if "start" in given else set())
    for column in map(str, table.columns):
        words = {*normal(column).split("_"), normal(column).replace("_", "")}  # t_min as tmin
        alone = "start" not in given and normal(column) in ("offset", "frame_offset", "sample_offset")
        if column in given.values() or words & _NO_TIME or not (words & likes or alone):
            continue
        both = bool(words & _LIKE_START and words & _LIKE_END)  # "0.5-1.5" in a column start-end
        cells = table[column][table[column].notna() & (table[column].astype(str).str.strip() != "")]
        texts = cells.astype(str).str.replace(r"[\W_]" if both else ",", "" if both else ".", regex=True)
        if len(cells) and pd.to_numeric(texts, errors="coerce").notna().all():
            raise ManifestError(
                f"the column '{column}' looks like a time and is not understood: call it 'start', 'end' or 'duration', "
                "in seconds, if it says where a clip lies in its file, else rename it or leave it out"
            )


def _end_to_duration(table: pd.DataFrame, given: dict[str, str]) -> pd.DataFrame:
    """Put a duration in the place of the end, after a check that they do not contradict each other."""
    column = given["end"]
    end = seconds(table[column], column, "end").to_numpy()
    start = table[given["start"]].to_numpy(np.float64) if "start" in given else np.zeros(len(table))
    length = end - np.nan_to_num(start)
    _refuse_rows(length <= 0, table, column, "is not after the start")
    if "duration" not in given:
        return table.assign(**{column: length}).rename(columns={column: "duration"})
    known = table[given["duration"]].to_numpy(np.float64)
    hint = f"contradicts '{given['duration']}' (rename that column if it is the length of the whole file)"
    _refuse_rows(np.abs(known - length) > _SLACK, table, column, hint)
    both = np.where(np.isnan(known), length, known)
    return table.assign(**{given["duration"]: both}).drop(columns=column)


def _refuse_rows(bad: npt.NDArray[np.bool_], table: pd.DataFrame, column: str, what: str) -> None:
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise ManifestError(f"column '{column}', row {row + 1}: {table[column].iloc[row]!r} {what}")


def seconds(column: pd.Series, name: str, quantity: str) -> pd.Series:
    """Text or numbers → float64 seconds; an empty text is NaN.

    Raises:
        ManifestError: A cell is no number, not finite, negative, or 0 where that cannot be.
    """
    blank = column.isna() | (column.astype(str).str.strip() == "")
    numbers = pd.to_numeric(column.where(~blank), errors="coerce").astype(np.float64)
    floor_broken = (numbers < 0) if quantity == "start" else (numbers <= 0)
    bad = np.flatnonzero((~blank & (numbers.isna() | np.isinf(numbers) | floor_broken)).to_numpy())
    if len(bad):
        cell = column.iloc[bad[0]]
        rule = "a number of seconds ≥ 0" if quantity == "start" else "a number of seconds > 0"
        comma = "; it has a decimal comma, write a point" if re.fullmatch(r"\s*\d+,\d+\s*", str(cell)) else ""
        other = "" if name == quantity else f"; rename the column if it is not the {quantity} of the clip"
        raise ManifestError(
            f"column '{name}', row {bad[0] + 1}: {cell!r} is not {rule}{comma} (leave it empty for the whole file"
            f"{other})"
        )
    return numbers * _meaning(name)[1]


def on_this_system(paths: pd.Series, root: Path) -> tuple[pd.Series, list[str]]:
    r"""Paths with backslashes or outer spaces, as other programs write them, where only the other spelling exists.

    Args:
        paths: Text, as the table has it.
        root: Where relative ones start from.

    Returns:
        The paths, and what was changed.

    Raises:
        ManifestError: No path with a backslash exists in either spelling.
    """
    slashed = paths.str.contains("\\", regex=False) & (os.sep == "/")
    odd = slashed | (paths != paths.str.strip())
    if not odd.any():
        return paths, []
    folder = os.path.abspath(root)
    better = paths[odd].map(lambda path: _existing(path, folder))
    missing = better[slashed[odd]].isna()
    if len(missing) and missing.all():
        first = paths[slashed].iloc[0]
        raise ManifestError(
            f"{len(missing)} paths have backslashes, such as {first}, and no file in {folder} is called so, with "
            "slashes neither: write / and give the folder that the paths start from (--root, data.root, task.root)"
        )
    changed = better.notna() & (better != paths[odd])
    fixed = paths.mask(odd & better.reindex(paths.index).notna(), better.reindex(paths.index))
    return fixed, [f"{int(changed.sum())} paths with backslashes or outer spaces read as other systems write them"]


def _existing(path: str, folder: str) -> str | None:
    """The first spelling of a path that exists."""
    plain, turned = path.strip(), path.replace("\\", "/")
    for spelling in (path, plain, turned, turned.strip()):
        if "\0" not in spelling and os.path.exists(os.path.join(folder, spelling)):
            return spelling
    return None

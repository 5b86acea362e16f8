"""A downstream task: which clips, which class each has, and which split it belongs to. No torch in here."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from decar.audio.manifest import Manifest
from decar.downstream.split import SPLITS, hold_out
from decar.errors import TaskError

log = logging.getLogger(__name__)

_SPELLINGS = {"val": "valid", "validation": "valid", "dev": "valid"}


@dataclass(frozen=True)
class TaskSpec:
    """What a user says to name a task.

    Attributes:
        name: How the task is called in results and tables.
        label: Column that holds the class; a clip where it is empty is not part of the task.
        path: A CSV or Parquet table, or a folder with one folder per class (then `label` is "label").
        split: Column with train, valid or test, empty for clips that are not part of the task. None, or a folder
            that is not divided by split: 70/10/20 is drawn, the same on every machine and for every run seed.
        root: Folder that relative paths of a table start from; None: the table's own folder.
        path_column: Column of the table that holds the paths.
        crop_frames: Frames of a training crop when the whole network is fine-tuned.
        source: A table that lists these clips among others, as `path`; tasks that name the same share one store and one
            embedding pass. None: the task's own table or folder.
        split_seed: Seeds the drawing of a split that was not given.
    """

    name: str
    label: str
    path: str | None = None
    split: str | None = "split"
    root: str | None = None
    path_column: str = "path"
    crop_frames: int = 98
    source: str | None = None
    split_seed: int = 0

    def typed(self, choice: str | None = None) -> dict[str, str | None]:
        """What a user types to name this task: `task` and the options that are not as conf/task/<choice>.yaml has them.

        `choice` None is "folder" or "csv", as the path is.
        """
        if choice == "table":
            return {"task": choice, "task.root": self.root, "task.name": self.name}
        choice = choice or ("folder" if _is_folder(self) else "csv")
        usual: dict[str, str | None] = {"name": self.label if choice == "csv" else choice}
        if choice in ("csv", "folder"):
            usual = {"path": None, "label": "label", "split": "split" if choice == "csv" else None} | usual
        if choice == "csv":
            usual |= {"root": None, "path_column": "path"}
        return {"task": choice} | {
            f"task.{key}": getattr(self, key) for key, value in usual.items() if getattr(self, key) != value
        }


@dataclass(frozen=True, eq=False)
class Task:
    """A task as loaded: `N` labelled clips, each in one split.

    Attributes:
        spec: What it was made from.
        source: The whole table or folder that the clips were taken from, so that several tasks can share its store.
        rows: `(N,)` int64, place of each clip in `source`.
        manifest: The clips of the task only, in the order of `rows`.
        y: `(N,)` int64, index into `classes`.
        classes: Names of the classes, sorted.
        split: `(N,)` of "train", "valid", "test".
        dropped: How many clips of each split were left out because they could not be read.
    """

    spec: TaskSpec
    source: Manifest
    rows: NDArray[np.int64]
    manifest: Manifest
    y: NDArray[np.int64]
    classes: list[str]
    split: NDArray[np.str_]
    dropped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))

    def __len__(self) -> int:
        return len(self.y)

    def indices(self, name: str) -> NDArray[np.int64]:
        """Positions `0..N-1` of the clips of one split."""
        return np.flatnonzero(self.split == name)

    def counts(self) -> dict[str, int]:
        """Number of clips in each split."""
        return {name: len(self.indices(name)) for name in SPLITS}

    def hash(self) -> str:
        """SHA-256 over path, start, duration, label and split of every clip: two results with the same hash compare."""
        table = self.manifest.table
        stretches = [table[c] if c in table else [None] * len(self) for c in ("start", "duration")]
        rows = zip(table["path"], *stretches, (self.classes[i] for i in self.y), self.split, strict=True)
        text = "\n".join(json.dumps([str(p), _seconds(s), _seconds(d), c, str(n)]) for p, s, d, c, n in rows)
        return hashlib.sha256(text.encode()).hexdigest()


def load_task(spec: TaskSpec) -> Task:
    """Load a task: the rows of its source that have a label and a split.

    A missing validation split is carved out of train (15 % of each class, drawn by `spec.split_seed`), since selection
    must never look at the test split.

    Raises:
        TaskError: No source given, a column is missing, a split value is unknown, a split is empty, there are fewer
            than two classes, or a class has no training clip.
        ManifestError: The source cannot be read.
    """
    table = _read_table(spec)
    labels = _column(spec, table, spec.label, "label")
    given = _given_split(spec, table)
    rows = np.flatnonzero((labels != "") & (given != "")) if given is not None else np.flatnonzero(labels != "")
    if not len(rows):
        raise TaskError(f"task {spec.name}: no clip of {spec.path} has a value in '{spec.label}'; nothing to learn")
    labels, files = labels[rows], table.table["path"].to_numpy(str)[rows]
    split = _complete_split(spec, labels, files, None if given is None else given[rows])
    classes = sorted(set(labels.tolist()))
    y = np.searchsorted(np.asarray(classes), labels).astype(np.int64)
    source, places = (table, rows) if spec.source is None else _find(spec, table.take(rows))
    task = Task(spec, source, places, source.take(places), y, classes, split)
    _check(task)
    return task


def drop_unreadable(task: Task, lengths: NDArray[np.int64]) -> Task:
    """Leave out the clips whose log-mel is empty; count them per split and warn.

    Args:
        task: `N` clips.
        lengths: `(N,)` frames in the store of each clip of the task, 0 for those that could not be read.

    Raises:
        TaskError: Nothing is left of a split, or the readable training clips are all of one class.
    """
    keep = np.flatnonzero(lengths > 0)
    if len(keep) == len(task):
        return task
    lost = Counter(task.split[lengths == 0].tolist())
    dropped = {name: task.dropped[name] + lost[name] for name in SPLITS}
    text = ", ".join(f"{lost[name]} of {count} {name}" for name, count in task.counts().items() if lost[name])
    first = task.manifest.table["path"].iloc[int(np.flatnonzero(lengths == 0)[0])]
    log.warning("task %s: %s clips cannot be read and are left out, first: %s", task.spec.name, text, first)
    left = replace(
        task, rows=task.rows[keep], manifest=task.manifest.take(keep), y=task.y[keep], split=task.split[keep],
        dropped=dropped,
    )  # fmt: skip
    _check_splits(left)
    return left


def _find(spec: TaskSpec, clips: Manifest) -> tuple[Manifest, NDArray[np.int64]]:
    """The table that `spec.source` names, and the place of each clip in it.

    Raises:
        TaskError: Some of the clips are not in it.
    """
    source = _read(str(spec.source), spec.root, "path")
    place = {key: i for i, key in enumerate(_keys(source))}
    found = [place.get(key, -1) for key in _keys(clips)]
    lost = [path for path, i in zip(clips.files, found, strict=True) if i < 0]
    if lost:
        raise TaskError(
            f"task {spec.name}: {len(lost)} of its {len(clips)} clips are not in {spec.source}, first: {lost[0]}; add "
            "them there, or pass task.source=null"
        )
    return source, np.asarray(found, np.int64)


def _keys(manifest: Manifest) -> list[tuple[Path, float, float | None]]:
    return [(path, *stretch) for path, stretch in zip(manifest.files, manifest.stretches, strict=True)]


def _read_table(spec: TaskSpec) -> Manifest:
    if not spec.path:
        raise TaskError(f"task {spec.name}: no source given; set task.path to a CSV or Parquet table or to a folder")
    return _read(spec.path, spec.root, spec.path_column)


def _read(given: str, root: str | None, path_column: str) -> Manifest:
    path = Path(given).expanduser()
    if path.is_dir():
        return Manifest.from_folder(path)
    read = Manifest.from_parquet if path.suffix.lower() in (".parquet", ".pq") else Manifest.from_csv
    return read(path, root=root, path_column=path_column)


def _is_folder(spec: TaskSpec) -> bool:
    return Path(str(spec.path)).expanduser().is_dir()


def _column(spec: TaskSpec, source: Manifest, column: str, key: str) -> NDArray[np.str_]:
    """One column as stripped strings, "" where it is empty."""
    if column not in source.table:
        found = ", ".join(map(str, source.table.columns))
        draw = ", or task.split=null to have one drawn" if key == "split" else ""
        raise TaskError(
            f"task {spec.name}: no {key} column '{column}' in {spec.path} (columns: {found}); set task.{key}{draw}"
        )
    return source.table[column].fillna("").astype(str).str.strip().to_numpy(str)


def _given_split(spec: TaskSpec, source: Manifest) -> NDArray[np.str_] | None:
    """The split column in our three words, or None when one has to be drawn."""
    in_folder = _is_folder(spec)
    column = "split" if in_folder else spec.split  # a folder that is divided by split says so itself
    if column is None or (in_folder and column not in source.table):
        return None
    words = _column(spec, source, column, "split")
    split = np.asarray([_SPELLINGS.get(word, word) for word in np.char.lower(words).tolist()])
    unknown = sorted(set(words[~np.isin(split, ["", *SPLITS])].tolist()))
    if unknown:
        raise TaskError(
            f"task {spec.name}: split column '{column}' of {spec.path} has unknown values {_some(unknown)}; "
            "use train, valid, test, or nothing for clips to leave out"
        )
    return split


def _complete_split(
    spec: TaskSpec, labels: NDArray[np.str_], files: NDArray[np.str_], given: NDArray[np.str_] | None
) -> NDArray[np.str_]:
    """Draw what is missing of train, valid and test."""
    rng = np.random.default_rng(spec.split_seed)
    split = np.full(len(labels), "train") if given is None else given.copy()
    if given is None:
        split[hold_out(labels, files, 0.2, rng)] = "test"
    if "valid" not in split:
        rest = np.flatnonzero(split == "train")
        share = 0.1 / 0.8 if given is None else 0.15
        split[rest[hold_out(labels[rest], files[rest], share, rng)]] = "valid"
    return split


def _check(task: Task) -> None:
    """Refuse a task that cannot be learned as it is given."""
    if len(task.classes) < 2:
        raise TaskError(
            f"task {task.spec.name}: column '{task.spec.label}' has one class only ('{task.classes[0]}'); "
            "give clips of two or more"
        )
    _check_splits(task)
    untaught = [task.classes[i] for i in np.setdiff1d(task.y, task.y[task.indices("train")])]
    if untaught:
        raise TaskError(
            f"task {task.spec.name}: no training clip of class {_some(untaught)}, though valid or test have some; "
            "add training clips or empty their split"
        )


def _check_splits(task: Task) -> None:
    empty = [name for name, count in task.counts().items() if not count]
    found = ", ".join(f"{count} {name}" for name, count in task.counts().items())
    where = f"task {task.spec.name}: "
    if empty:
        lost = f", {sum(task.dropped.values())} unreadable" if any(task.dropped.values()) else ""
        raise TaskError(f"{where}no {' and no '.join(empty)} clips (found {found}{lost}); add some to {task.spec.path}")
    if len(np.unique(task.y[task.indices("train")])) < 2:
        raise TaskError(f"{where}the training clips are all of one class (found {found}); add clips of another")


def _some(words: Sequence[str], limit: int = 5) -> str:
    return ", ".join(f"'{word}'" for word in words[:limit]) + (", …" if len(words) > limit else "")


def _seconds(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)

"""A downstream task: its clips, the class and the split of each. No torch in here."""

import hashlib
import json
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from decar.audio.columns import find_column, no_column
from decar.audio.groups import AUTO, Labels, shared_sound, together
from decar.audio.manifest import Manifest
from decar.downstream.split import SPLITS, by_fold, complete, draw_shots, quoted, read_split
from decar.errors import ManifestError, TaskError
from decar.unpack import is_archive

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskSpec:
    """The definition of a task.

    Attributes:
        name: Name of the task in results and tables.
        label: Column that holds the class; a clip where it is empty is not part of the task.
        path: A CSV or Parquet table, or a folder or archive with one folder per class (then `label` is "label").
        split: Column with train, valid or test, empty for clips that are not part of the task. None, or a folder or
            archive that is not divided by split: 70/10/20 is drawn, the same on every machine and for every run seed.
        root: Folder that relative paths of a table start from; None: the table's own folder.
        path_column: Column of the table that holds the paths.
        crop_frames: Frames of a training crop when the whole network is fine-tuned.
        source: A table that lists these clips among others, as `path`; tasks that name the same share one store and one
            embedding pass. None: the task's own table or folder.
        fold: The fold to test on, by the table's column `fold`; the next one is for validation, the others for
            training. Then `split` does not count.
        shots: Few-shot: so many training clips a class, and as many for validation, drawn by the run's seed.
        multilabel: `label` holds several labels joined by commas; judged by mAP.
        split_seed: Seeds the drawing of a split that was not given.
        group: Column of which no value is divided when a split is drawn; "auto": those called speaker, recording,
            location and the like, where they leave something to draw; None: none. Clips of one file stay together
            always.
    """

    name: str
    label: str
    path: str | None = None
    split: str | None = "split"
    root: str | None = None
    path_column: str = "path"
    crop_frames: int = 98
    source: str | None = None
    fold: str | None = None
    shots: int | None = None
    multilabel: bool = False
    split_seed: int = 0
    group: str | None = AUTO


@dataclass(frozen=True, eq=False)
class Task:
    """A task as loaded: `N` labelled clips, each in one split.

    Attributes:
        spec: Its definition.
        source: The whole table or folder that the clips were taken from, so that several tasks can share its store.
        rows: `(N,)` int64, place of each clip in `source`.
        manifest: The clips of the task only, in the order of `rows`.
        y: `(N,)` int64, index into `classes`; with several labels a clip `(N, C)` bool.
        classes: Names of the classes, sorted.
        split: `(N,)` of "train", "valid", "test".
        dropped: How many clips of each split were left out because they could not be read.
    """

    spec: TaskSpec
    source: Manifest
    rows: NDArray[np.int64]
    manifest: Manifest
    y: NDArray[np.int64] | NDArray[np.bool_]
    classes: list[str]
    split: NDArray[np.str_]
    dropped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))

    def __len__(self) -> int:
        return len(self.y)

    def indices(self, name: str) -> NDArray[np.int64]:
        """Positions `0..N-1` of the clips of one split."""
        return np.flatnonzero(self.split == name)

    def take(self, keep: NDArray[np.int64]) -> "Task":
        """Some clips of the task, by position; the classes stay."""
        return replace(
            self, rows=self.rows[keep], manifest=self.manifest.take(keep), y=self.y[keep], split=self.split[keep]
        )

    def counts(self) -> dict[str, int]:
        """Number of clips in each split."""
        return {name: len(self.indices(name)) for name in SPLITS}

    def label(self, i: int) -> str:
        """The class of a clip; several labels joined by commas."""
        if self.y.ndim == 2:
            return ",".join(name for name, has in zip(self.classes, self.y[i], strict=True) if has)
        return self.classes[int(self.y[i])]

    def hash(self) -> str:
        """SHA-256 over path, start, duration, label and split of every clip: two results with the same hash compare."""
        table = self.manifest.table
        stretches = [table[c] if c in table else [None] * len(self) for c in ("start", "duration")]
        rows = zip(table["path"], *stretches, map(self.label, range(len(self))), self.split, strict=True)
        text = "\n".join(json.dumps([str(p), _seconds(s), _seconds(d), c, str(n)]) for p, s, d, c, n in rows)
        return hashlib.sha256(text.encode()).hexdigest()


def load_task(spec: TaskSpec) -> Task:
    """Load a task: the rows of its source that have a label and a split.

    A missing validation split is carved out of train (15 % of each class, drawn by `spec.split_seed`), since selection
    must never look at the test split. Clips of one file, speaker, recording or place stay on one side of a drawn split;
    see `TaskSpec.group`.

    Raises:
        TaskError: No source given, a column is missing, a split value is unknown, a split is empty, there are fewer
            than two classes, or a class has no training clip.
        ManifestError: The source cannot be read.
    """
    try:
        return _load(spec)
    except TaskError as error:
        raise TaskError(f"task {spec.name}: {error}") from error


def _load(spec: TaskSpec) -> Task:
    if not spec.path:
        raise TaskError("no source given; set task.path to a CSV or Parquet table or to a folder")
    table = Manifest.from_path(spec.path, root=spec.root, path_column=spec.path_column)
    labels, given = _column(spec, table, spec.label, "label"), _given_split(spec, table)
    rows = np.flatnonzero(labels != "" if given is None else (labels != "") & (given != ""))
    if not len(rows):
        raise TaskError(f"no clip of {spec.path} has a value in '{spec.label}'; nothing to learn")
    if len(rows) < len(table):
        log.info("task %s: %d of %d clips have no %s or no split and are left out", spec.name, len(table) - len(rows),
                 len(table), spec.label)  # fmt: skip
    labels = labels[rows]
    classes, y = _classes(labels, spec.multilabel)
    known = y.astype(bool) if spec.multilabel else labels
    split = _completed(spec, table.take(rows), known, None if given is None else given[rows])
    source, places = (table, rows) if spec.source is None else _find(spec, table.take(rows))
    task = Task(spec, source, places, source.take(places), y, classes, split)
    _check(task)
    _warn_of_shared(task)
    warn_of_spellings(classes)
    return task


def _warn_of_shared(task: Task) -> None:
    """Name clips that are in two splits, or parts of them: they are learned from and judged on."""
    paths = task.manifest.table["path"]
    shared = shared_sound(paths.tolist(), task.manifest.stretches, task.split.tolist())
    if shared:
        log.warning("task %s: %d clips share sound with a clip of another split, first: %s; what is learned from must "
                    "not be judged on", task.spec.name, len(shared), paths.iloc[min(shared)])  # fmt: skip


def _column(spec: TaskSpec, source: Manifest, column: str, key: str) -> NDArray[np.str_]:
    """One column as stripped strings, "" where it is empty."""
    found = find_column(source.table.columns, column)
    if found is None:
        draw = ", or task.split=null to have one drawn" if key == "split" else ""
        raise TaskError(f"{spec.path} has {no_column(source.table.columns, column)}; set task.{key}{draw}")
    return source.table[found].fillna("").astype(str).str.strip().to_numpy(str)


def _given_split(spec: TaskSpec, source: Manifest) -> NDArray[np.str_] | None:
    """The split of each clip as the source has it, by fold or by column; None when one has to be drawn."""
    if spec.fold is not None:
        return by_fold(_column(spec, source, "fold", "fold"), spec.fold, str(spec.path))
    source_path = Path(str(spec.path)).expanduser()
    in_folder = source_path.is_dir() or is_archive(source_path)
    column = "split" if in_folder else spec.split  # from the names of the first level, if they are splits
    if column is None or (in_folder and column not in source.table):
        return None
    return read_split(_column(spec, source, column, "split"), f"split column '{column}' of {spec.path}")


def _completed(spec: TaskSpec, clips: Manifest, labels: Labels, given: NDArray[np.str_] | None) -> NDArray[np.str_]:
    """The split of each clip; a missing part is drawn by whole groups; `labels` as of `hold_out`."""
    if given is not None and "valid" in given:
        return given
    try:
        groups, used, left_out = together(
            clips.table, labels, spec.group, label=find_column(clips.table.columns, spec.label),
            parts=3 if given is None else 2,
        )  # fmt: skip
    except ManifestError as error:
        raise TaskError(f"task.group={spec.group}: {error}") from None
    split = complete(labels, groups, given, spec.split_seed)
    what = "train, valid and test are drawn" if given is None else "valid is drawn from train"
    log.info("task %s: %s, no %s is in two of them", spec.name, what, ", ".join(["file", *used]))
    if left_out:
        log.warning(
            "task %s: %s not kept apart in the draw: most clips, or most classes, have one value of it; "
            "task.group=COLUMN names a column to keep apart", spec.name, ", ".join(left_out),
        )  # fmt: skip
    if used and "valid" not in split and "train" in split:
        raise TaskError(
            f"too few values of {', '.join(used)} to draw a split that divides none; give a column task.split with "
            "train, valid and test, or pass task.group=null"
        )
    return split


def _classes(labels: NDArray[np.str_], several: bool) -> tuple[list[str], NDArray[np.int64] | NDArray[np.bool_]]:
    """Names of the classes, sorted, and which each clip has."""
    if not several:
        classes = sorted(set(labels.tolist()))
        return classes, np.searchsorted(np.asarray(classes), labels).astype(np.int64)
    sets = [{word.strip() for word in label.split(",")} - {""} for label in labels.tolist()]
    classes = sorted(set().union(*sets))
    return classes, np.asarray([[name in words for name in classes] for words in sets])


def warn_of_spellings(names: Sequence[str]) -> None:
    """Name labels that differ in capitals, spaces, the code of an accent, or as 1, 01 and 1.0 do, alone."""
    alike = dict[str | Decimal, list[str]]()
    for name in names:
        plain = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
        number = re.fullmatch(r"[-+]?\d+(\.\d*)?", plain, re.ASCII)
        alike.setdefault(Decimal(plain) if number else plain, []).append(name)
    for spellings in alike.values():
        if len(spellings) > 1:
            log.warning(
                "%s are different labels, and a clip of one counts as none of the other: is one spelling meant?",
                " and ".join(f"'{name}'" for name in spellings),
            )


def _find(spec: TaskSpec, clips: Manifest) -> tuple[Manifest, NDArray[np.int64]]:
    """The table that `spec.source` names, and the place of each clip in it.

    Raises:
        TaskError: Some of the clips are not in it.
    """
    source = Manifest.from_path(str(spec.source), root=spec.root)
    place = {key: i for i, key in enumerate(_keys(source))}
    found = [place.get(key, -1) for key in _keys(clips)]
    lost = [path for path, i in zip(clips.files, found, strict=True) if i < 0]
    if lost:
        raise TaskError(
            f"{len(lost)} of its {len(clips)} clips are not in {spec.source}, first: {lost[0]}; add them there, or "
            "pass task.source=null"
        )
    return source, np.asarray(found, np.int64)


def _keys(manifest: Manifest) -> list[tuple[Path, float, float | None]]:
    return [(path, *stretch) for path, stretch in zip(manifest.files, manifest.stretches, strict=True)]


def few_shot(task: Task, seed: int) -> Task:
    """`spec.shots` training clips a class, and as many for validation, drawn by `seed`; the test split stays whole.

    A class that has fewer gives all. With several labels a clip the draw is by the set of them.
    """
    shots = task.spec.shots
    if shots is None:
        return task
    labels = np.asarray([task.label(i) for i in range(len(task))])
    drawn = draw_shots(labels, task.split, shots, np.random.default_rng(seed))
    return task.take(np.flatnonzero((task.split == "test") | drawn))


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
    left = replace(task.take(keep), dropped=dropped)
    try:
        _check_splits(left)
    except TaskError as error:
        raise TaskError(f"task {task.spec.name}: {error}") from error
    untaught = _untaught(left)
    if untaught:
        log.warning("task %s: no readable training clip of class %s: test clips of it count as wrong", task.spec.name,
                    quoted(untaught))  # fmt: skip
    return left


def _check(task: Task) -> None:
    """Refuse a task that cannot be learned as it is given."""
    if len(task.classes) < 2:
        raise TaskError(
            f"column '{task.spec.label}' has one class only ('{task.classes[0]}'); give clips of two or more"
        )
    _check_splits(task)
    untaught = _untaught(task)
    if untaught:
        raise TaskError(
            f"no training clip of class {quoted(untaught)}, though valid or test have some; add training clips or "
            "empty their split"
        )


def _untaught(task: Task) -> list[str]:
    """Classes of clips to be judged that no training clip has."""
    return [task.classes[i] for i in sorted(_present(task.y) - _present(task.y[task.indices("train")]))]


def _present(y: NDArray[np.int64] | NDArray[np.bool_]) -> set[int]:
    """Classes that some clip has."""
    return set((np.flatnonzero(y.any(axis=0)) if y.ndim == 2 else np.unique(y)).tolist())


def _check_splits(task: Task) -> None:
    empty = [name for name, count in task.counts().items() if not count]
    found = ", ".join(f"{count} {name}" for name, count in task.counts().items())
    if empty:
        lost = f", {sum(task.dropped.values())} unreadable" if any(task.dropped.values()) else ""
        raise TaskError(f"no {' and no '.join(empty)} clips (found {found}{lost}); add some to {task.spec.path}")
    if len(_present(task.y[task.indices("train")])) < 2:
        raise TaskError(f"the training clips are all of one class (found {found}); add clips of another")


def _seconds(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)

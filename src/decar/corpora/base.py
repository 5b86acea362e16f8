"""A public corpus, and helpers for the function that lists its clips: folders, lists, tables, drawn splits.

That function follows the corpus's own lists and split, and opens no audio. `prepare` checks that the files exist.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from decar.audio.manifest import Manifest
from decar.errors import CorpusError, one_line

Row: TypeAlias = dict[str, Any]  # of a manifest; `path` is relative to the root, or a Path below it


@dataclass(frozen=True)
class Size:
    """A line of the paper's Table 1.

    Attributes:
        classes: Number of classes.
        clips: Number of clips.
        seconds: Mean duration of a clip, s.
    """

    classes: int
    clips: int
    seconds: float


@dataclass(frozen=True)
class Archive:
    """A file of the official download.

    Attributes:
        url: Its official address.
        checksum: `md5:…` or `sha256:…` as published; "" where none is.
        folder: Folder under the root that it is unpacked in; "" for the root.
        name: File name to save it under, where the address does not end in it.
    """

    url: str
    checksum: str = ""
    folder: str = ""
    name: str = ""

    @property
    def file(self) -> str:
        """The name that it is saved under."""
        return self.name or self.url.rsplit("/", 1)[1]


@dataclass(frozen=True)
class Corpus:
    """A public corpus.

    Attributes:
        name: Its name in commands, tasks and tables; the paper's nine as in its tables.
        title: Its full name, with the release.
        clips: Folder → a row a clip, with `split` or `fold`.
        label: The column of the manifest that holds the classes.
        page: Where it is described.
        apart: Columns of which no value may lie in two splits: the corpus's own rule against leaks.
        archives: Its free downloads.
        by_hand: How to get it where there is a form to sign, or no archive to fetch; "" else.
        paper: Table 1, None where the paper does not have it.
        official: Clips and classes of the release itself, where they are published and differ from the paper's.
        published: Clips with a value of a column, as `split=test`, that the release's lists or its paper state.
        differs: Why ours may differ from Table 1, for the comparison.
        multilabel: Whether a clip has several classes, joined by commas.
    """

    name: str
    title: str
    clips: Callable[[Path], Iterable[Row]]
    label: str
    page: str
    apart: tuple[str, ...] = ()
    archives: tuple[Archive, ...] = ()
    by_hand: str = ""
    paper: Size | None = None
    official: tuple[int, int] | None = None
    published: Mapping[str, int] = field(default_factory=dict)
    differs: str = ""
    multilabel: bool = False

    def classes(self, cells: Iterable[str]) -> set[str]:
        """The classes in some cells of the column `label`."""
        return {word for cell in set(cells) for word in (cell.split(",") if self.multilabel else [cell])}

    def read(self, root: Path) -> Manifest:
        """The clips that its lists name, sorted by path and start so that the order is the same on every machine.

        Raises:
            CorpusError: The folder is not laid out as published, or there is no clip.
        """
        try:
            table = pd.DataFrame(list(self.clips(root)))
            if not len(table):
                raise CorpusError(f"no clips found in {root}; is it the folder that the archive was unpacked in?")
        except CorpusError as error:
            raise CorpusError(f"{self.title}: {error}") from error
        table["path"] = [str(p.relative_to(root)) if isinstance(p, Path) else p for p in table["path"]]
        by = ["path", "start"] if "start" in table else ["path"]
        return Manifest(table.sort_values(by, kind="stable").reset_index(drop=True), root)


def find(root: Path, *names: str) -> Path:
    """The first of some folders or files that exists under `root` (`.`: root itself), which must exist too.

    Raises:
        CorpusError: None of them exists; names them, and what is there instead.
    """
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise CorpusError(f"the folder {root} {what}; give the folder that the archives were unpacked in")
    for name in names:
        if (root / name).exists():
            return root / name
    there = ", ".join(sorted(entry.name for entry in root.iterdir())[:6]) or "nothing"
    wanted = f"neither {' nor '.join(names)}" if len(names) > 1 else f"no {names[0]}"
    raise CorpusError(f"{wanted} in {root} (there is: {there}); give the folder above it")


def lines(file: Path) -> list[str]:
    """The lines of a list file, stripped, without empty ones.

    Raises:
        CorpusError: It cannot be read, or is empty.
    """
    try:
        found = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, ValueError) as error:
        raise CorpusError(f"the list {file} cannot be read ({one_line(error)}); download it again") from error
    found = [line for line in found if line]
    if not found:
        raise CorpusError(f"the list {file} is empty; download it again")
    return found


def cells(text: Iterable[str], file: Path, **dialect: Any) -> Iterator[list[str]]:
    """The rows of a table without a header line, from its lines.

    Raises:
        CorpusError: It cannot be read: mostly a quote without its end, which swallows all that follows.
    """
    reader = csv.reader(text, **dialect)
    try:
        yield from reader
    except csv.Error as error:
        raise CorpusError(f"{file}, line {reader.line_num}: {error}; download it again") from error


def rows(file: Path, columns: Sequence[str], *, delimiter: str = ",") -> Iterator[dict[str, str]]:
    """The rows of a table with a header line; it must have these columns.

    Raises:
        CorpusError: It cannot be read, lacks a column (another release?), or a row is cut off.
    """
    table = cells(lines(file), file, delimiter=delimiter)
    header = next(table)
    missing = [column for column in columns if column not in header]
    if missing:
        raise CorpusError(f"{file} has no column '{missing[0]}' (columns: {', '.join(header)}); is it another release?")
    last = max(map(header.index, columns))
    for number, row in enumerate(table, 2):
        if len(row) <= last:
            raise CorpusError(f"{file}, line {number} is cut off; download it again")
        yield dict(zip(header, row, strict=False))


def entries(file: Path, pick: Callable[[Any], Iterable[tuple[str, ...]]]) -> list[tuple[str, ...]]:
    """Some values of each entry of a JSON file.

    Raises:
        CorpusError: It cannot be read, or an entry lacks one of them.
    """
    try:
        return list(pick(json.loads(file.read_text())))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorpusError(
            f"{file} cannot be read ({error!r}): another release? Else unpack the archive again"
        ) from error


def known(label: str, labels: Iterable[str], where: str) -> str:
    """The label, if it is one of those that the corpus has.

    Raises:
        CorpusError: It is not.
    """
    labels = list(labels)
    if label not in labels:
        raise CorpusError(f"{where}: unknown label '{label}'; expected one of {', '.join(labels)}")
    return label


def with_split(
    clips: list[Row],
    shares: dict[str, float],
    *,
    groups: str = "path",
    within: str | None = None,
    column: str = "split",
) -> list[Row]:
    """The rows with a column `split` drawn by whole `groups`, in the same shares `within` each value of a column."""
    names, labels = [str(clip[groups]) for clip in clips], [str(clip[within]) if within else "" for clip in clips]
    drawn = draw(names, labels, shares) if clips else []
    return [{**clip, column: split} for clip, split in zip(clips, drawn, strict=True)]


def draw(groups: Sequence[str], labels: Sequence[str], shares: dict[str, float]) -> list[str]:
    """A split by whole groups within each label, the same on every machine.

    Args:
        groups: The group of each clip (its speaker), never divided; the clips' paths for a draw by clips.
        labels: The class of each clip; the shares hold within each. A group counts for the class of its first clip.
        shares: Part of the groups for each split, such as `{"train": 0.8, "test": 0.2}`; they sum to 1.

    Returns:
        The split of each clip.
    """
    first = pd.Series(list(labels)).groupby(np.asarray(groups, str)).first()
    bounds = np.cumsum(list(shares.values()))
    rng = np.random.default_rng(0)
    drawn: dict[str, str] = {}
    for label in sorted(set(first)):
        members = rng.permutation(np.asarray(first.index[first == label], str))
        sizes = np.diff(np.round(bounds * len(members)).astype(int), prepend=0)
        while len(members) >= len(sizes) and not sizes.all():  # each split gets one at least
            sizes[np.argmin(sizes)] += 1
            sizes[np.argmax(sizes)] -= 1
        for name, part in zip(shares, np.split(members, np.cumsum(sizes)[:-1]), strict=True):
            drawn |= dict.fromkeys(part.tolist(), name)
    return [drawn[group] for group in groups]

"""Folder, CSV or Parquet → which clips there are, and what is known about each.

A manifest is a table with one row a clip and the column `path`; `start` and `duration` (seconds) where a clip is a
stretch of its file, `split` where the source has one, and any number of label columns. Labels are text, and an empty
text means "no label": letting pandas guess would turn the word "nan", the tone "1" and the key "NA" into numbers. No
audio is read here, and no torch.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from decar.audio.columns import find_column, no_column, on_this_system, path_columns, with_path, with_stretches
from decar.audio.conditions import matching
from decar.audio.containers import folder_of, read_sounds
from decar.audio.identity import RECORD, WHOLE_BYTES, Records, identify, remembered
from decar.audio.origin import Origin
from decar.audio.remote import refuse_addresses
from decar.audio.scan import AUDIO_SUFFIXES, below_wrapper, find_audio, labels_from_folders
from decar.audio.tables import is_parquet, read_parquet_table, read_text_table
from decar.errors import ManifestError
from decar.unpack import is_archive

log = logging.getLogger(__name__)

STRETCH_COLUMNS = ("start", "duration")


class Identity(NamedTuple):
    """Which sounds the clips of a manifest are.

    Attributes:
        fingerprint: SHA-256 (hex) of paths as the source writes them, stretches, digests, and modification times of
            files that were not read whole. Neither `root` nor the machine enters.
        content: SHA-256 (hex) of digests and stretches alone: the same sounds in the same order, whatever their names.
        n_clips: `N`.
    """

    fingerprint: str
    content: str
    n_clips: int


@dataclass(frozen=True, eq=False)
class Manifest:
    """Which clips there are, in the order that every array of the project follows.

    Attributes:
        table: one row a clip, RangeIndex. `path` as the source writes it; optional `start` and `duration` (s, NaN =
            from the beginning, to the end), `split`, and label columns of text. Other names of times are understood
            where they are clear; see `decar.audio.columns`.
        root: the folder under which relative paths lie.
        part_of: where `where` made it: the manifest that it took the clips from, and their rows there. A store of all
            of them serves for some.
        origin: the store that the files of all clips come from as they are needed; see `decar.audio.origin`.
        understood: that the names of times are those above already: whether a column looks like a time depends on its
            cells, so a part of a table could be refused where all of it was not.
    """

    table: pd.DataFrame
    root: Path
    part_of: tuple[Manifest, npt.NDArray[np.int64]] | None = None
    origin: Origin | None = None
    understood: bool = False

    def __post_init__(self) -> None:
        table = self.table.reset_index(drop=True)  # a copy: the caller's table is never changed
        if "path" not in table.columns:
            raise ManifestError(f"the table has no column 'path' (columns: {_names(table)})")
        table["path"] = table["path"].astype(str)
        nul = np.flatnonzero(table["path"].str.contains("\0", regex=False))
        if len(nul):
            raise ManifestError(
                f"row {nul[0] + 1}: the path {table['path'][nul[0]]!r} holds a NUL byte: no file has that"
            )
        table, notes = (table, []) if self.understood else with_stretches(table)
        if notes:
            log.info("table: %s", ", ".join(notes))
        object.__setattr__(self, "table", table)
        object.__setattr__(self, "understood", True)
        object.__setattr__(self, "root", Path(self.root))

    @classmethod
    def from_folder(cls, root: str | os.PathLike[str], *, recursive: bool = True) -> Manifest:
        """Every audio file under `root`, sorted by path; hidden files and folders are left out.

        Column `label` is the first-level folder ("" for a file directly in `root`). When all first-level folders are
        named train, valid, val, validation, dev or test, they become column `split` and the second-level folder is
        the label.

        `root` may be an archive (zip; tar, also compressed): its sounds are unpacked into the cache, see
        `decar.audio.containers`. A folder in it that holds all its folders is no label.

        Raises:
            ManifestError: the folder is missing, or no audio lies in it.
            CorpusError: the archive is damaged or refused.
        """
        given, folder = Path(root).expanduser(), folder_of(root)
        if not folder.is_dir():
            what = "is a file, not a folder" if folder.exists() else "does not exist"
            raise ManifestError(
                f"the folder {folder} {what}: give a folder with audio files in it, or a zip or tar archive of them; "
                "tables are read by data=csv and data=parquet"
            )
        paths = find_audio(folder, recursive=recursive)
        if not paths:
            kinds = " ".join(suffix[1:] for suffix in AUDIO_SUFFIXES)
            below = "" if recursive else " directly"
            raise ManifestError(f"no audio found{below} in {given}: files that end in {kinds} are read")
        named = paths if folder == given else below_wrapper(paths)
        return cls(pd.DataFrame({"path": paths, **labels_from_folders(named)}), folder)

    @classmethod
    def from_csv(
        cls,
        path: str | os.PathLike[str],
        *,
        root: str | os.PathLike[str] | None = None,
        path_column: str = "path",
        where: str | None = None,
    ) -> Manifest:
        """A table with a header line: commas, semicolons or tabs; UTF-8, or UTF-16 with a byte-order mark.

        `start` and `end`, `onset` and `offset`, `Begin Time (s)` and the like become `start` and `duration`.

        Args:
            path: the table.
            root: the folder or archive under which relative paths lie; the folder of the table when None.
            path_column: the column that names the files; it is called `path` from here on. Where there is no `path`,
                the only column of a usual name (`file`, `filename`, `audio` and so on) is taken.
            where: only rows for which this holds; see the method `where`.

        Raises:
            ManifestError: the file is missing, cannot be read as a table, has no rows, no such column, bad numbers, or
                columns whose meaning is not clear.
        """
        source = Path(path).expanduser()
        table, notes = read_text_table(source, lambda names: bool(path_columns(names, path_column)))
        return cls._from_table(table, source, root, path_column, notes).where(where)

    @classmethod
    def from_parquet(
        cls,
        path: str | os.PathLike[str],
        *,
        root: str | os.PathLike[str] | None = None,
        path_column: str = "path",
        where: str | None = None,
    ) -> Manifest:
        """As `from_csv`; labels of any plain type become text, missing ones ""; columns of lists are left out.

        The sounds may be in the file, as `datasets` writes them; then `path` may be a pattern of several files, and
        sounds are unpacked into the cache, see `decar.audio.containers`.
        """
        source = Path(path).expanduser()
        if sounds := read_sounds(source, path_column):
            return cls._from_table(sounds[0], source, sounds[1], "path", []).where(where)
        table = read_parquet_table(source)
        return cls._from_table(table, source, root, path_column, []).where(where)

    @classmethod
    def from_path(
        cls,
        path: str | os.PathLike[str],
        *,
        root: str | os.PathLike[str] | None = None,
        path_column: str = "path",
        where: str | None = None,
    ) -> Manifest:
        """`from_folder` of a folder or archive (no options); `from_parquet` of .parquet and .pq, else `from_csv`."""
        given = Path(path).expanduser()
        if given.is_dir() or is_archive(given):
            return cls.from_folder(path)
        read = cls.from_parquet if is_parquet(given) else cls.from_csv
        return read(path, root=root, path_column=path_column, where=where)

    @classmethod
    def _from_table(
        cls,
        table: pd.DataFrame,
        source: Path,
        root: str | os.PathLike[str] | None,
        path_column: str,
        notes: list[str],
    ) -> Manifest:
        folder = folder_of(root) if root is not None else source.parent
        try:
            if len(table) == 0:
                raise ManifestError("has no rows: one row a clip is expected")
            table, paths = with_path(table, path_column)
            empty = np.flatnonzero((table["path"] == "").to_numpy())
            if len(empty):
                raise ManifestError(f"row {empty[0] + 1} has no path ({len(empty)} such rows)")
            table, times = with_stretches(table)
            table["path"], spelling = on_this_system(table["path"], folder)
            clips = cls(table, folder)
        except ManifestError as error:
            raise ManifestError(f"{source}: {error}") from None
        notes = [*notes, *paths, *times, *spelling]
        if notes:
            log.info("%s: %s", source, "; ".join(notes))
        return clips

    def __len__(self) -> int:
        return len(self.table)

    @property
    def files(self) -> list[Path]:
        """Absolute path of each clip's file; relative ones lie under `root`.

        Raises:
            ManifestError: a path is an address; see `decar.audio.remote`.
        """
        refuse_addresses(self.table["path"])
        root = Path(os.path.abspath(self.root))
        return [root / path for path in self.table["path"]]

    @property
    def stretches(self) -> list[tuple[float, float | None]]:
        """Start (s) and duration (s, None = to the end of the file) of each clip."""
        starts, durations = (self._seconds_of(name) for name in STRETCH_COLUMNS)
        whole = [None if np.isnan(seconds) else float(seconds) for seconds in durations]
        return list(zip(np.nan_to_num(starts).tolist(), whole, strict=True))

    @property
    def jobs(self) -> list[tuple[Path, float, float | None]]:
        """File, start (s) and duration (s, None = to the end of the file) of each clip."""
        return [(file, *stretch) for file, stretch in zip(self.files, self.stretches, strict=True)]

    def where(self, condition: str | None) -> Manifest:
        """The clips for which a condition holds, such as `split=train and kind != "dog and cat"`; None: all.

        The grammar is that of `decar.audio.conditions`.

        Raises:
            ManifestError: the condition cannot be read, there is no such column, no clip has the value, or no clip is
                left.
        """
        if not condition:
            return self
        keep = matching(self.table, condition)
        if not keep.any():
            raise ManifestError(f"where={condition}: holds for none of {len(self)} clips")
        return replace(self.take(keep), part_of=(self, np.flatnonzero(keep)))

    def take(self, indices: Sequence[int] | npt.NDArray[np.integer | np.bool_]) -> Manifest:
        """The clips at `indices` (or where a mask is True), in that order."""
        table = self.table.iloc[positions(indices, len(self))]
        origin = self.origin and self.origin.of(table["path"])
        return Manifest(table, self.root, origin=origin, understood=True)

    def column(self, name: str) -> pd.Series:
        """One column; capitals, spaces and punctuation of the name do not count where only one can be meant.

        Raises:
            ManifestError: there is none of that name; the message lists those there are.
        """
        found = find_column(self.table.columns, name)
        if found is None:
            raise ManifestError(f"the manifest has {no_column(self.table.columns, name)}")
        return self.table[found]

    def identity(self, cache_dir: str | os.PathLike[str] | None = None, *, records: Records | None = None) -> Identity:
        """What the audio of the clips depends on, in two hashes; labels do not enter. See `decar.audio.identity`.

        Args:
            cache_dir: where digests of files are remembered; None: every file is read.
            records: what `records` has just found.
        """
        return self._identity_of(self.records(cache_dir) if records is None else records)

    def records(self, cache_dir: str | os.PathLike[str] | None = None) -> Records:
        """Size, times and digest of each clip's file, `(N,)`; of objects of a store, what that says of them."""
        if self.origin is not None:
            return self.origin.records(self.table["path"].tolist())
        codes, files = self._distinct_files()
        return identify(files, cache_dir, known_elsewhere=lambda: self._known_to_whole(files, cache_dir))[codes]

    def identity_of_whole(self, identity: Identity, cache_dir: str | os.PathLike[str]) -> Identity | None:
        """The identity of all clips of `part_of` when it was last found, if the sounds of these clips are still those.

        No file is looked at. What `identity` has found of the files of these clips is compared with what was found of
        them then, so that an exchanged one is noticed; files of other clips do not matter.

        Args:
            identity: Of these clips, now.
            cache_dir: Where digests of files are remembered.

        Returns:
            None where this is no part, files are not remembered, or one of these clips has changed since.
        """
        if self.part_of is None:
            return None
        whole, rows = self.part_of
        (codes, files), (own_codes, own_files) = whole._distinct_files(), self._distinct_files()
        known, own = remembered(files, cache_dir), remembered(own_files, cache_dir)
        if known is None or own is None or self._identity_of(now := own[own_codes]) != identity:
            return None
        then = known[codes[rows]]
        large = now["size"] > WHOLE_BYTES
        same = (now["digest"] == then["digest"]).all() and (now["mtime"] == then["mtime"])[large].all()
        return whole._identity_of(known[codes]) if same else None

    def _distinct_files(self) -> tuple[npt.NDArray[np.intp], list[str]]:
        """The number of each clip's file, and the files: one with many clips is read once."""
        codes, paths = pd.factorize(self.table["path"].to_numpy(object))
        refuse_addresses(paths)
        root = os.path.abspath(self.root)
        return codes, [os.path.join(root, path) for path in paths.tolist()]  # text: 2 M Path objects take ten seconds

    def _known_to_whole(self, files: Sequence[str], cache_dir: str | os.PathLike[str] | None) -> Records | None:
        """What is remembered of these files as part of those of `part_of`."""
        if self.part_of is None or cache_dir is None:
            return None
        _, others = self.part_of[0]._distinct_files()
        known = remembered(others, cache_dir)
        return None if known is None else known[pd.Index(others).get_indexer(pd.Index(files))]

    def _identity_of(self, records: Records) -> Identity:
        """The hashes, from the record of each clip's file."""
        stretches = np.stack([np.nan_to_num(self._seconds_of(name), nan=-1.0) for name in STRETCH_COLUMNS], axis=1)
        content = hashlib.sha256(np.ascontiguousarray(records["digest"]).tobytes() + stretches.tobytes())
        named = hashlib.sha256(content.digest())
        named.update("\0".join(self.table["path"].tolist()).encode("utf-8", "surrogatepass"))
        named.update(np.where(records["size"] > WHOLE_BYTES, records["mtime"], 0).tobytes())
        return Identity(named.hexdigest(), content.hexdigest(), len(self))

    def fingerprint(self, cache_dir: str | os.PathLike[str] | None = None) -> str:
        """SHA-256 (hex) of what the log-mels of the clips depend on: `identity().fingerprint`."""
        return self.identity(cache_dir).fingerprint

    def names_hash(self) -> str:
        """SHA-256 (hex) of paths as the source writes them, and stretches: no sound is looked at."""
        return self._identity_of(np.zeros(len(self), RECORD)).fingerprint

    def content_hash(self, *columns: str) -> str:
        """SHA-256 (hex) of the values of `columns`, all when none is named.

        Neither `root` nor the disk enters: it is equal on every machine.
        """
        chosen = columns or tuple(map(str, self.table.columns))
        digest = hashlib.sha256()
        _update(digest, chosen)
        for row in zip(*(self.column(name).tolist() for name in chosen), strict=True):
            _update(digest, (value if isinstance(value, str) else repr(value) for value in row))
        return digest.hexdigest()

    def _seconds_of(self, name: str) -> npt.NDArray[np.float64]:
        if name in self.table.columns:
            return self.table[name].to_numpy(dtype=np.float64)
        return np.full(len(self), np.nan)


def positions(indices: Sequence[int] | npt.NDArray[np.integer | np.bool_], n: int) -> npt.NDArray[np.int64]:
    """Indices or a mask of length `n` → int64 indices."""
    array = np.asarray(indices)
    if array.dtype == np.bool_:
        if array.shape != (n,):
            raise ValueError(f"a mask needs {n} entries, got shape {array.shape}")
        return np.flatnonzero(array).astype(np.int64)
    return array.astype(np.int64)


def _update(digest: hashlib._Hash, parts: Iterable[str]) -> None:
    """Length before text, so that ("ab", "c") and ("a", "bc") differ."""
    encoded = [part.encode("utf-8", "surrogatepass") for part in parts]
    digest.update(b"".join(b"%d:%b" % (len(data), data) for data in encoded))


def _names(table: pd.DataFrame) -> str:
    return ", ".join(map(str, table.columns)) or "none"

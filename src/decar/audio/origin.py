"""Clips whose sounds are objects of a store, such as s3://bucket/birds: a file comes into the cache as it is needed.

An object is copied once, into `CACHE/sources/fetched`. Its copy has a modification time that is made of the object's
size and version; so a changed object is copied anew, and digests and results are those of a copy that was deleted and
fetched again. Before anything is copied, clips are identified by what the listing says.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from decar.audio.identity import RECORD, Records
from decar.audio.parallel import in_order
from decar.audio.progress import progress_bar
from decar.audio.remote import MOST_BYTES, THREADS, fetched_home, place_of
from decar.errors import ManifestError
from decar.fetch import UnreachableError
from decar.files import warn_left_out, whole
from decar.objects import Stored, look, read
from decar.unpack import saving

if TYPE_CHECKING:
    from decar.audio.manifest import Manifest

log = logging.getLogger(__name__)

LONGEST_NAME = 200  # bytes; file systems take 255, of which a part's name needs some
STEP = 2 * 10**9  # ns: FAT keeps times in steps of 2 s
GOES_ON = "; what was fetched is kept, and the same command goes on from there"
PROBES = 3  # other objects that are looked at where one cannot be read


@dataclass(frozen=True, eq=False)
class Origin:
    """Where the files of clips come from.

    Attributes:
        address: A prefix of a store.
        objects: What lies below it, by the paths of the clips.
    """

    address: str
    objects: Mapping[str, Stored]

    @property
    def home(self) -> Path:
        """The folder of the copies."""
        return fetched_home() / place_of(self.address)

    def records(self, paths: Sequence[str]) -> Records:
        """Size, time and digest of each path, as `identify` has them of files; `(N,)`."""
        records, found = np.zeros(len(paths), RECORD), [self.objects[path] for path in paths]
        records["size"] = [stored.size for stored in found]
        records["mtime"] = [time_of(stored) for stored in found]
        digests = b"".join(stored.digest[:16] for stored in found)
        records["digest"] = np.frombuffer(digests, "<u8").reshape(-1, 2)
        return records

    def size(self, file: Path, folder: Path) -> int:
        """Bytes of the object whose copy in a folder is this file, whether or not it is there."""
        return self.objects[file.relative_to(folder).as_posix()].size

    def of(self, paths: Iterable[str]) -> Origin:
        """The same store with these objects only."""
        return Origin(self.address, {path: self.objects[path] for path in paths})

    def lacking(self, paths: Iterable[str], folder: Path) -> list[str]:
        """The paths whose copies are not in a folder, or are of another version."""
        return [path for path in paths if not _is_copy(folder / path, self.objects[path])]

    def fetch(self, path: str, folder: Path) -> str:
        """Copy an object into a folder, whole or not at all; returns why it cannot be had, "" where it is there.

        Raises:
            UnreachableError: The store does not answer, or refuses everything.
            ManifestError: The object has changed since it was listed.
            CorpusError: The file cannot be written.
        """
        stored, file = self.objects[path], folder / path
        if reason := unusable(path):
            return reason
        if _is_copy(file, stored):
            return ""
        try:
            with saving(file), whole(file) as part:
                read(f"{self.address}/{path}", part, expected=stored, most=MOST_BYTES)
                os.utime(part, ns=(time_of(stored), time_of(stored)))
        except UnreachableError as error:
            if not error.final or not self._others_can_be_read(path):
                raise
            return f"cannot be fetched: {error}"
        return ""

    def _others_can_be_read(self, path: str) -> bool:
        """Whether a failure is one of an object: credentials that have run out, or a lost bucket, spoil all."""
        others = [other for other in self.objects if other != path]
        for other in others[:: max(1, len(others) // PROBES)][:PROBES]:
            try:
                look(f"{self.address}/{other}")
                return True
            except UnreachableError as error:
                if not error.final:
                    raise
        return False


def time_of(stored: Stored) -> int:
    """The modification time of a copy, ns: no other object or version has it, as with unpacked sounds."""
    return 10**18 + int(stored.digest[16:].hex()[:14], 16)


def _is_copy(file: Path, stored: Stored) -> bool:
    try:
        info = file.stat()
    except OSError:
        return False
    return info.st_size == stored.size and abs(info.st_mtime_ns - time_of(stored)) < STEP


def unusable(path: str) -> str:
    """Why the name of an object cannot be one of a file below a folder, "" where it can."""
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\0" in path or (os.name == "nt" and set(path) & set('\\:*"')):
        return "its name cannot be that of a file"
    if max(len(part.encode("utf-8", "surrogatepass")) for part in parts) > LONGEST_NAME:
        return f"its name has more than {LONGEST_NAME} bytes"
    if "::" in path:
        return "its name holds ::, which joins two addresses"
    return ""


def fits(n_bytes: int, folder: Path, spare: float = 0.0) -> bool:
    """Whether so many bytes take at most half of the free room of a folder's disk, and leave some of the disk free.

    Args:
        n_bytes: What is to be written.
        folder: Where; it need not exist.
        spare: The part of the whole disk that has to stay free.
    """
    while not folder.exists():
        folder = folder.parent
    disk = shutil.disk_usage(folder)
    return 2 * n_bytes <= disk.free and n_bytes + spare * disk.total <= disk.free


@contextmanager
def reachable(address: str, advice: str = "") -> Iterator[None]:
    """Raise a ManifestError that names the address where its store does not answer or refuses."""
    try:
        yield
    except UnreachableError as error:
        raise ManifestError(f"{address}: {error}{advice}") from error


def with_files(clips: Manifest, *, progress: bool = False) -> Manifest:
    """The clips of an origin with all of their files in the cache; what cannot be had is named in the log.

    Raises:
        ManifestError: The store does not answer, nothing can be fetched, or there is no room.
        CorpusError: A file cannot be written.
    """
    if clips.origin is None:
        return clips
    paths = list(dict.fromkeys(clips.table["path"]))
    fetch_all(clips.origin, paths, clips.root, some_may_fail=True, progress=progress)
    return replace(clips, origin=None)


def fetch_all(
    origin: Origin, paths: Sequence[str], folder: Path, *, some_may_fail: bool = False, progress: bool = False
) -> None:
    """Copy objects into a folder.

    Args:
        origin: Where they are.
        paths: Which ones.
        folder: Where to.
        some_may_fail: Whether one that cannot be had is named in the log; otherwise it is an error.
        progress: Whether to show a bar.

    Raises:
        ManifestError: As `with_files`.
        CorpusError: As `with_files`.
    """
    todo = origin.lacking(paths, folder)
    if len(todo) < len(paths):
        log.info("%d of %d objects were fetched earlier, and lie in %s", len(paths) - len(todo), len(paths), folder)
    n_bytes = sum(origin.objects[path].size for path in todo)
    if not fits(n_bytes, folder):
        raise ManifestError(
            f"{origin.address}: {n_bytes / 1e9:.1f} GB are to be fetched, more than half of the free room of {folder}: "
            "make room, set DECAR_CACHE to a folder on another disk, or take a part of it (decar embed needs less room)"
        )
    if todo:
        log.info("fetching %d objects, %.3g MB, from %s", len(todo), n_bytes / 1e6, origin.address)
    failed = {}
    with progress_bar("fetch", len(todo), enabled=progress) as advance, reachable(origin.address, GOES_ON):
        for path, reason in in_order(lambda path: [(path, origin.fetch(path, folder))], todo, THREADS):
            advance(1)
            if reason:
                failed[path] = reason
    if failed and (len(failed) == len(paths) or not some_may_fail):
        path, reason = next(iter(failed.items()))
        raise ManifestError(f"{origin.address}/{path}: {reason}")
    warn_left_out([f"{origin.address}/{path} ({reason})" for path, reason in failed.items()])

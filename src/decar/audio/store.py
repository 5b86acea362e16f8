"""The log-mels of a whole manifest on disk: built once, found again by fingerprint, read by memory map.

`CACHE/logmel/<fingerprint>/` holds `mel.f16`, (ΣF, M) float16 as it stands in memory, frame after frame, clip after
clip; `index.parquet`, a row a clip: path, offset, frames, status, reason; and `meta.json`, which has the digests of
the others. The fingerprint is made from the clips (paths as the source writes them, stretches, content; see
`identity.py`) and the front-end's numbers, so a change of either makes another store, and a copy of the sounds finds
the same one. A folder of that name is always whole: it is built under another name (see `build.py`) and renamed.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import mmap
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import filelock
import numpy as np
import numpy.typing as npt
import pandas as pd

from decar.audio import ffmpeg
from decar.audio.blocks import Blocks
from decar.audio.build import FORMAT, build_store, first_reasons
from decar.audio.cache import mark_damaged, read_store
from decar.audio.clips import SEGMENT_SECONDS, WHOLE_SECONDS, Segment
from decar.audio.decode import TRUNCATION_TOLERANCE
from decar.audio.logmel import FrontEnd
from decar.audio.manifest import Identity, Manifest, positions
from decar.audio.recorded import AT, later
from decar.digests import DamagedError
from decar.errors import ConfigError, StoreError
from decar.limits import limits

log = logging.getLogger(__name__)

DEFAULT_CACHE = "~/.cache/decar"
NAMED_IN_LOG = 20  # bad clips; the rest is counted
CHECKED_AT_OPEN = 2**20  # bytes of log-mels, in .3 ms; further blocks are checked as they are first read


@dataclass(eq=False)
class LogMelStore:
    """The log-mels of N clips; clip `i` is `store[i]`, (F, M) float16.

    Attributes:
        manifest: the clips, in the order of everything here.
        frontend: the numbers that the log-mels were made with.
        mel: (ΣF, M) float16, all frames; shared by a store and what was taken from it.
        offsets: (N,) int64, first frame of each clip.
        lengths: (N,) int64, frames of each clip, 0 for one that cannot be used.
        reasons: what is wrong with each clip, "" for nothing. A silent clip has a reason and frames.
        fingerprint: of the clips, their order and the front-end: equal fingerprints have equal log-mels.
        content: of the sounds in their order, whatever the files are called; "" where they are not known.
        blocks: compares `mel` with its digests as it is read; None for one in memory or of an earlier version.
    """

    manifest: Manifest
    frontend: FrontEnd
    mel: npt.NDArray[np.float16]
    offsets: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    reasons: list[str]
    fingerprint: str
    content: str = ""
    blocks: Blocks | None = None

    @classmethod
    def open_or_build(
        cls,
        manifest: Manifest,
        frontend: FrontEnd | None = None,
        cache_dir: str | os.PathLike[str] = DEFAULT_CACHE,
        *,
        identity: Identity | None = None,
        num_workers: int | None = None,
        progress: bool = True,
    ) -> LogMelStore:
        """The store of `manifest`, from the cache when it is there, else built; bad clips are named in the log.

        A killed build goes on where it stopped. Of two processes that want one store at once, one builds, the other
        waits. A damaged store is built anew. Of a manifest that is part of another (`Manifest.where`), the store of
        all of it serves where there is one.

        Each file is looked at once (`stat`): an exchanged sound has another store. `identity` saves it.

        Args:
            manifest: the clips.
            frontend: the numbers; the paper's when None.
            cache_dir: stores lie in `logmel/` under it.
            identity: of the clips, as just found by another process of this job; None: found here.
            num_workers: threads; as many as there are cores when None.
            progress: show how far it is, on stderr.

        Raises:
            StoreError: no clips, none that can be used, files that change meanwhile, or the cache cannot be written.
        """
        spec = frontend or FrontEnd()
        if len(manifest) == 0:
            raise StoreError("the manifest has no clips: nothing to store")
        identity = identity or manifest.identity(cache_dir)
        folder = _folder(identity, spec, cache_dir)
        fingerprint = folder.name
        wanted = folder, replace(manifest, part_of=None), spec, fingerprint
        store = cls._open(*wanted)
        if store is None:
            store = cls._open_part(manifest, identity, spec, cache_dir)
        if store is None:
            try:
                with _lock(folder):
                    store = cls._open(*wanted, delete_damaged=True)  # the previous holder may have built it
                    if store is None:
                        build_store(*wanted, num_workers=num_workers, progress=progress)
                        store = cls._open(*wanted)
                if store is None:
                    what = f"the log-mel store {folder} vanished right after it was built"
                    raise StoreError(f"{what}: does something clean that folder?")
                if manifest.identity(cache_dir) != identity:
                    shutil.rmtree(folder)
                    raise StoreError(
                        f"files below {manifest.root} were changed while their log-mels were computed, or are not "
                        "those of the job's first process: run it again when nothing writes to them"
                    )
            except (OSError, NotImplementedError) as error:  # the second is a file system without locks
                raise _cannot_write(folder.parent, error) from error
        store.content = identity.content
        if store.blocks is None:
            log.info("%s is of an earlier version and has no checksums: delete it to have it built with them", folder)
        store._log_bad()
        return store

    @classmethod
    def _open(
        cls, folder: Path, manifest: Manifest, spec: FrontEnd, fingerprint: str, delete_damaged: bool = False
    ) -> LogMelStore | None:
        """The finished store, None when there is none, it is damaged, or it lacks what ffmpeg can read by now."""
        if not folder.exists():
            return None
        shape = len(manifest), spec.n_mels
        try:
            files = read_store(folder, CHECKED_AT_OPEN)
            if files.fingerprint != fingerprint or (len(files.lengths), files.mel.shape[1]) != shape:
                raise DamagedError("it belongs to other clips")
        except DamagedError as error:
            _discard(folder, f"is damaged ({error})", delete_damaged)
            return None
        if ffmpeg.would_help(files.reasons):
            _discard(folder, "lacks clips for which ffmpeg was missing, and it is there now", delete_damaged)
            return None
        arrays = files.mel, files.offsets, files.lengths, files.reasons
        return cls(manifest, spec, *arrays, fingerprint, blocks=files.blocks)

    @classmethod
    def _open_part(
        cls, manifest: Manifest, identity: Identity, spec: FrontEnd, cache_dir: str | os.PathLike[str]
    ) -> LogMelStore | None:
        """The clips of a part of a manifest from the finished store of all of it, None where there is none."""
        all_of_them = manifest.identity_of_whole(identity, cache_dir)
        if all_of_them is None or manifest.part_of is None:
            return None
        whole, rows = manifest.part_of
        folder = _folder(all_of_them, spec, cache_dir)
        store = cls._open(folder, whole, spec, folder.name)
        if store is None:
            return None
        log.info("%d clips of the log-mel store %s", len(rows), folder)
        return replace(store.take(rows), fingerprint=_folder(identity, spec, cache_dir).name)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> npt.NDArray[np.float16]:
        """(F, M) float16 view of one clip's log-mel; F = 0 for a clip that cannot be used.

        Raises:
            StoreError: the clip lies in a block that is damaged; the store is built anew when it is opened next.
        """
        return self._rows(int(self.offsets[index]), int(self.lengths[index]))

    def crops(self, places: Iterable[tuple[int, int]], frames: int) -> list[npt.NDArray[np.float16]]:
        """Views of up to `frames` frames of some clips, each at a place (index, first frame of the clip).

        From a cold disk the pages of all of them are read at once, and no others: reading around each page that is
        missing, as kernels do by default, brings fifty times as much.

        Raises:
            StoreError: As `store[index]`.
        """
        self.advise("random")
        found = []
        for index, first in places:
            begin = int(self.offsets[index]) + first
            found.append(self._rows(begin, min(frames, int(self.lengths[index]) - first)))
            self._want(begin, len(found[-1]))
        return found

    def advise(self, use: Literal["random", "sequential"]) -> None:
        """Say how this process is going to read: the kernel then reads nothing ahead, or more than it would."""
        self._advise("MADV_RANDOM" if use == "random" else "MADV_SEQUENTIAL")

    def _want(self, begin: int, rows: int) -> None:
        """Have the kernel begin to read some rows."""
        row_bytes = self.mel.shape[1] * self.mel.itemsize
        start = begin * row_bytes // mmap.PAGESIZE * mmap.PAGESIZE
        if rows:
            self._advise("MADV_WILLNEED", start, (begin + rows) * row_bytes - start)

    def _advise(self, name: str, *stretch: int) -> None:
        """Advise the kernel about the map, or a stretch of its bytes; nothing for a store in memory, or on Windows."""
        pages, option = getattr(self.mel, "_mmap", None), getattr(mmap, name, None)
        if pages is not None and option is not None:
            with suppress(OSError):  # a file system may not follow it
                pages.madvise(option, *stretch)

    def _rows(self, begin: int, rows: int) -> npt.NDArray[np.float16]:
        end = begin + rows
        if self.blocks is not None:
            try:
                self.blocks.check_rows(begin, end)
            except DamagedError as error:
                raise self._damaged(self.blocks, error) from error
        mel = np.asarray(self.mel)  # a slice of a memmap is a memmap, which costs more than the slice
        return mel[begin:end]

    def _damaged(self, blocks: Blocks, error: DamagedError) -> StoreError:
        """Marks the store, and names its file and the clips that are concerned."""
        reason, number = error.args
        mark_damaged(blocks.file.parent, f"{blocks.file.name}: {reason}")
        rows = blocks.rows(number)
        clips = np.flatnonzero((self.offsets < rows.stop) & (self.offsets + self.lengths > rows.start))
        return StoreError(
            f"{blocks.file} is damaged ({reason}; {self.named(clips)}): run the command again, train.py with "
            "resume=auto; the log-mels are then computed anew from the sounds"
        )

    def take(self, indices: Sequence[int] | npt.NDArray[np.integer | np.bool_]) -> LogMelStore:
        """The clips at `indices` (or where a mask is True), in that order, over the same memory map."""
        chosen = positions(indices, len(self))
        everything = len(chosen) == len(self) and bool((chosen == np.arange(len(self))).all())
        return LogMelStore(
            self.manifest.take(chosen),
            self.frontend,
            self.mel,
            self.offsets[chosen],
            self.lengths[chosen],
            [self.reasons[i] for i in chosen],
            self.fingerprint if everything else _sha256(self.fingerprint, (chosen % max(len(self), 1)).tobytes()),
            self.content if everything else _sha256(self.content, (chosen % max(len(self), 1)).tobytes()),
            self.blocks,
        )

    def segmented(self, segment: Segment) -> LogMelStore:
        """Recordings cut into segments, each a clip with `start` and `duration`, over the same memory map.

        Segments follow one another without a gap, in whole frames. What is left at the end of a recording is a segment
        of its own, or joined to the one before where it is shorter than half a segment; as `Windows` has it.

        Args:
            segment: Seconds; `auto`: 5 s, and clips of up to 15 s stay whole; `none`: all do.

        Raises:
            ConfigError: A segment would be shorter than two windows of the front-end.
        """
        if segment == "none":
            return self
        length, whole = (SEGMENT_SECONDS, WHOLE_SECONDS) if segment == "auto" else (segment, 0.0)
        spec = self.frontend
        hop = spec.hop_length / spec.sample_rate
        size = round(length / hop)
        if size * spec.hop_length < 2 * spec.win_length:
            raise ConfigError(f"segment={length:g}: give at least {2 * spec.win_length / spec.sample_rate:g} s")
        seconds = self.seconds
        n = np.where(seconds > whole, np.maximum(1, (2 * self.lengths + size) // (2 * size)), 1)
        clip = np.repeat(np.arange(len(self)), n)
        if len(clip) == len(self):
            return self
        skipped = (np.arange(len(clip)) - np.repeat(np.cumsum(n) - n, n)) * size  # frames of the clip before this one
        last = np.append(clip[1:] != clip[:-1], True)
        store = self.take(clip)
        begun = np.array([start for start, _ in store.manifest.stretches])
        known = np.array([duration or np.nan for _, duration in store.manifest.stretches])
        early = known > seconds[clip] + TRUNCATION_TOLERANCE  # the file ends before the clip
        left = np.where(np.isnan(known) | early, seconds[clip], known) - skipped * hop
        alone = n[clip] == 1
        table = store.manifest.table.drop(columns=["start", "duration"], errors="ignore").assign(
            start=np.where(alone, begun, begun + skipped * hop),
            duration=np.where(alone, known, np.where(last, left, size * hop)),
        )
        if AT in table:
            table[AT] = later(table[AT], skipped * hop)
        cut = _sha256(self.fingerprint, np.stack([clip, skipped]).tobytes())
        return replace(
            store, manifest=replace(store.manifest, table=table, part_of=None), offsets=store.offsets + skipped,
            lengths=np.where(last, store.lengths - skipped, size), fingerprint=cut, content=self.content,
        )  # fmt: skip

    @property
    def seconds(self) -> npt.NDArray[np.float64]:
        """(N,) length of each clip, to a frame; 0 for one that cannot be used."""
        spec = self.frontend
        samples = (self.lengths - 1) * spec.hop_length + spec.win_length
        return np.where(self.lengths > 0, samples, 0) / spec.sample_rate

    def usable(self, allow_silent: bool = False) -> LogMelStore:
        """The clips that have frames and, unless silence is allowed, something to hear.

        Raises:
            StoreError: none is left.
        """
        heard = np.array([not reason for reason in self.reasons], bool)
        store = self.take((self.lengths > 0) & (heard | allow_silent))
        if len(store) == 0:
            raise StoreError(f"none of the {len(self)} clips can be used: {first_reasons(self.manifest, self.reasons)}")
        return store

    @property
    def bad(self) -> pd.DataFrame:
        """Columns path, reason: every clip that something is wrong with, silent ones among them."""
        table = pd.DataFrame({"path": self.manifest.table["path"], "reason": self.reasons})
        return table[table["reason"] != ""].reset_index(drop=True)

    def named(self, indices: Sequence[int] | npt.NDArray[np.integer], n: int = 3) -> str:
        """The first `n` of some clips by their paths, for a message of one line."""
        paths = self.manifest.table["path"].iloc[list(indices[:n])]
        more = f" and {len(indices) - n} more clips" if len(indices) > n else ""
        return ", ".join(paths) + more

    def _log_bad(self) -> None:
        bad = self.bad
        for path, reason in bad.head(NAMED_IN_LOG).itertuples(index=False):
            log.warning("%s: %s", path, reason)
        if len(bad) > NAMED_IN_LOG:
            log.warning("… and %d more of %d clips with something wrong", len(bad) - NAMED_IN_LOG, len(self))

    def __getstate__(self) -> dict[str, Any]:
        """A spawned worker maps the file itself: pickling the map would copy all of it."""
        state = dict(self.__dict__)
        if isinstance(self.mel, np.memmap) and self.mel.filename is not None:
            state["mel"] = (str(self.mel.filename), self.mel.shape)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if isinstance(state["mel"], tuple):
            filename, shape = state["mel"]
            state = {**state, "mel": np.memmap(filename, np.float16, "r", shape=shape)}
        self.__dict__.update(state)


def _discard(folder: Path, why: str, delete: bool) -> None:
    """Delete a store that cannot be used; without the lock it stays, as another process may be replacing it."""
    if delete:
        log.warning("the log-mel store %s %s: building it anew", folder, why)
        shutil.rmtree(folder)


def _folder(identity: Identity, spec: FrontEnd, cache_dir: str | os.PathLike[str]) -> Path:
    """Where the store of some clips lies; its name is the fingerprint."""
    fingerprint = _sha256(f"{FORMAT} {identity.fingerprint} {spec.hash()}{limits().changed()}")
    return Path(cache_dir).expanduser() / "logmel" / fingerprint


def _sha256(text: str, data: bytes = b"") -> str:
    return hashlib.sha256(text.encode() + b"\0" + data).hexdigest()


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Lock the name of a store, after waiting for a process that builds it. A kill of the holder frees the lock."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(f"{folder}.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        log.warning("another process builds the log-mel store %s: waiting for it", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _cannot_write(folder: Path, error: Exception) -> StoreError:
    """Names the folder, the room in it and the cure."""
    there = next((place for place in (folder, *folder.parents) if place.is_dir()), Path("/"))
    free = shutil.disk_usage(there).free
    kept = ""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
        kept = "make room and run it again, it goes on where it stopped, or "
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return StoreError(
        f"the log-mel store cannot be written in {folder}: {reason} ({free:,} bytes free); "
        f"{kept}give another folder with cache_dir=DIR"
    )

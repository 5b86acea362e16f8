"""Clips in shards: what a worker embeds at a time, the part file that brings its rows back, and who does which.

One mechanism for Ray and SLURM. A worker needs the sounds and the folder of the part files at the same paths as the
process that started it, nothing else. A part file is there whole or not at all, so a worker that dies leaves nothing to
mend, and one that was given up but still runs can do no harm: it replaces a part file by an equal one. The process that
started the workers appends the part files to the journal that one machine would write, in the order of the clips.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

import decar
from decar.audio import Manifest
from decar.audio.clips import ClipEnd, Job, weight
from decar.audio.crops import packed
from decar.audio.decode import NOT_FOUND
from decar.audio.identity import Records
from decar.audio.journal import Journal, as_line, parse_line
from decar.digests import DamagedError, unsealed
from decar.errors import DecarError
from decar.fetch import UnreachableError
from decar.files import whole
from decar.limits import Limits, limits, set_limits
from decar.unpack import UnwritableError

log = logging.getLogger(__name__)

KEY = "key.txt"  # in the folder of the part files: what their bytes depend on
SHARD_CLIPS, SHARD_BYTES = 256, 2**25  # 17 minutes of wav at 16 kHz: what the loss of a worker costs at most
TRIES = 3  # workers that may be lost on a shard

Vectors = NDArray[np.float32]


class VanishedError(DecarError):
    """Files are gone that were there: the cache was cleaned, or a disk was unmounted."""


@dataclass(frozen=True)
class Shard:
    """The clips `first` up to but without `stop`."""

    first: int
    stop: int


class Memory:
    """Keeps rows as a `Journal` does, without files."""

    def __init__(self, dim: int) -> None:
        self.ends: list[ClipEnd] = []
        self.counts: list[int] = []
        self._vectors, self._begun = [np.zeros((0, dim), np.float32)], list[Vectors]()

    def rows(self, rows: Vectors) -> None:
        """Rows of the next clip."""
        self._begun.append(rows)

    def end(self, end: ClipEnd) -> None:
        """The clip is over. The rows of one that cannot be used are dropped."""
        rows = [] if end.reason else self._begun
        self.counts.append(sum(map(len, rows)))
        self.ends.append(end)
        self._vectors += rows
        self._begun = []

    def commit(self) -> None:
        """Nothing to do."""

    def matrix(self) -> Vectors:
        """All rows `(R, D)`."""
        return np.concatenate(self._vectors)


def cut(clips: Manifest, done: int = 0) -> list[Shard]:
    """The shards of clips, without the first `done` clips.

    Where shards begin depends on the clips alone, so that a second call finds the part files of the first.
    """

    def heavy(job: Job) -> int:  # what the store says of an object, whether or not its copy is here
        return weight(job) if clips.origin is None else clips.origin.size(job[0], clips.root)

    shards, first = [], 0
    for jobs in packed(clips.jobs, heavy, SHARD_BYTES, most=SHARD_CLIPS):
        stop = first + len(jobs)
        if stop > done:
            shards.append(Shard(max(first, done), stop))
        first = stop
    return shards


class Parts:
    """The part files of an output: the only place that knows how and where they lie.

    A part file is a line of a journal, with the key, and the rows behind it.

    Args:
        folder: Where they lie. All machines see it at this path.
        key: What the rows depend on. Part files of another key do not count.
        dim: `D`.
    """

    def __init__(self, folder: Path, key: str, dim: int) -> None:
        self.folder, self.key, self.dim = folder, key, dim

    def file(self, shard: Shard) -> Path:
        """Where the rows of a shard belong."""
        return self.folder / f"{shard.first:09}-{shard.stop:09}.part"

    def check_folder(self) -> None:
        """Raise a DecarError unless this machine sees the folder of the process that started it."""
        try:
            found = (self.folder / KEY).read_text()
        except OSError:
            found = ""
        if found != self.key:
            raise DecarError(
                f"{socket.gethostname()} does not see {self.folder}: the folder of the output has to lie at the same "
                "path on all machines"
            )

    def write(self, shard: Shard, made: Memory) -> None:
        """Write the rows of a shard.

        Raises:
            OSError: The disk is full or gone.
        """
        rows = np.ascontiguousarray(made.matrix(), "<f4").tobytes()
        line = as_line(made.counts, made.ends, xxhash.xxh3_64(rows).hexdigest(), key=self.key)
        with whole(self.file(shard)) as part, part.open("wb") as file:
            file.write(f"{line}\n".encode())
            file.write(rows)

    def read(self, shard: Shard) -> tuple[list[tuple[int, ClipEnd]], Vectors] | None:
        """Number of rows and end of each clip, and all rows `(R, D)`; None where there is no such part file.

        Raises:
            DamagedError: It does not hold the rows of these clips.
        """
        try:
            line, _, rows = self.file(shard).read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        clips, digest = parse_line(line, shard.stop - shard.first)
        if unsealed(line).get("key") != self.key or len(clips) != shard.stop - shard.first:
            raise DamagedError("the rows of other clips")
        if xxhash.xxh3_64(rows).hexdigest() != digest or len(rows) != 4 * self.dim * sum(n for n, _ in clips):
            raise DamagedError("its rows do not fit their digest")
        return clips, np.frombuffer(rows, "<f4").reshape(-1, self.dim)

    def refresh(self) -> None:
        """See what other machines have written: an NFS client may remember that a name was missing until it lists."""
        os.listdir(self.folder)

    def drop(self, shard: Shard) -> None:
        """Delete a part file."""
        self.file(shard).unlink(missing_ok=True)


class Embeds(Protocol):
    """What shards need of an `Embedder`."""

    def into(self, clips: Manifest, sink: Memory) -> None:
        """Embed clips."""
        ...


@dataclass(frozen=True)
class Task:
    """What a worker is given at a time, beside the embedder.

    Attributes:
        clips: Those of its shards, one shard after the other, below a root that is absolute.
        records: What the process that made the task has found of their files.
        shards: Where they lie among all clips.
        parts: Where rows belong.
        limits: Of the process that made the task.
        version: Of decar there.
    """

    clips: Manifest
    records: Records
    shards: Sequence[Shard]
    parts: Parts
    limits: Limits
    version: str = decar.__version__


def work(embedder: Embeds, task: Task) -> DecarError | OSError | None:
    """Runs on a worker: embed the shards of a task and write their part files.

    Returns:
        None, or what went wrong: a DecarError ends everything, an OSError may be this machine's own.
    """
    try:
        if task.version != decar.__version__:
            raise DecarError(
                f"{socket.gethostname()} has decar {decar.__version__}, this machine {task.version}: install the same"
            )
        task.parts.check_folder()
        set_limits(task.limits)
        first = 0
        for shard in task.shards:
            stop, made = first + shard.stop - shard.first, Memory(task.parts.dim)
            clips = task.clips.take(np.arange(first, stop))
            check_sounds(clips, task.records[first:stop])
            embedder.into(clips, made)
            task.parts.check_folder()  # it is gone, or another's, if this worker was given up long ago
            task.parts.write(shard, made)
            first = stop
    except (DecarError, OSError) as error:
        return _of_this_machine(error)
    return None


def check_sounds(clips: Manifest, expected: Records) -> None:
    """Raise an OSError where another file lies at the path of a clip than the process that made the task has found.

    One that is missing is reported when it is read; objects are compared when they are fetched.
    """
    if clips.origin is not None:
        return
    found = clips.records()
    other = (found["size"] >= 0) & (expected["size"] >= 0) & (found["digest"] != expected["digest"]).any(axis=1)
    if other.any():
        file = clips.files[int(other.argmax())]
        raise OSError(f"{socket.gethostname()} has another file at {file}, or it was changed since the command began")


def _of_this_machine(error: DecarError | OSError) -> DecarError | OSError:
    """What another machine may do without as an OSError: a cache that is full or cleaned, a store out of reach."""
    cause = error.__cause__
    if isinstance(error, UnwritableError) and isinstance(cause, OSError):
        return cause
    if isinstance(error, VanishedError) or (isinstance(cause, UnreachableError) and not cause.final):
        return OSError(str(error))
    return error


class Pool(Protocol):
    """Workers that call `work`.

    Attributes:
        tasks: Tasks to make of all shards; None: one of each.
    """

    tasks: int | None

    def room(self) -> int:
        """How many tasks it can hold; raises a DecarError when no machine is left."""
        ...

    def submit(self, tasks: Sequence[Task]) -> Sequence[Any]:
        """Begin tasks; a handle for each."""
        ...

    def ended(self, handles: Collection[Any]) -> list[Any]:
        """Those of some handles whose task has ended; waits for one, but for a few seconds at most."""
        ...

    def outcome(self, handle: Any) -> DecarError | OSError | str | None:
        """What `work` has returned, or why it has not."""
        ...


class Engine(Protocol):
    """Where the machines come from.

    Attributes:
        device: What the network runs on there; None: what it would run on here.
    """

    device: str | None

    def pool(self, embedder: Any, folder: Path) -> AbstractContextManager[Pool]:
        """Workers with a copy of this `Embedder`; logs go to `folder`."""
        ...


class Crew:
    """Hands the shards of clips to the workers of a pool, and appends their rows to a journal in order.

    Args:
        pool: The workers.
        clips: All clips, below a root that is absolute.
        records: What has been found of their files.
        parts: Where the part files lie.
        journal: Rows of the first clips, as many as there are already.
    """

    def __init__(self, pool: Pool, clips: Manifest, records: Records, parts: Parts, journal: Journal) -> None:
        self.pool, self.clips, self.records, self.parts, self.journal = pool, clips, records, parts, journal
        self.left = deque(cut(clips, journal.committed))  # not in the journal
        self.losses: Counter[Shard] = Counter()

    def run(self, advance: Callable[[int], object]) -> None:
        """Embed what the journal has not got.

        Raises:
            DecarError: A worker raised it, or three workers have not done the same shard.
        """
        waiting, running = deque(self._tasks()), dict[Any, Sequence[Shard]]()
        self._append(advance)
        while waiting or running:
            new = [waiting.popleft() for _ in range(min(self.pool.room() - len(running), len(waiting)))]
            running.update(zip(self.pool.submit([self._task(shards) for shards in new]), new, strict=True))
            for handle in self.pool.ended([*running]):
                again = self._missing(running.pop(handle), self.pool.outcome(handle))
                waiting.extendleft([again] if again else [])
            self._append(advance)
        if self.left:  # its part file was there before
            raise DecarError(f"{self._found(self.left[0])}; run the same command again")

    def _tasks(self) -> Iterator[Sequence[Shard]]:
        """Shards without a part file, in as many tasks as the pool wants; neighbours go to different ones."""
        todo = [shard for shard in self.left if isinstance(self._found(shard), str)]
        n = len(todo) if self.pool.tasks is None else min(self.pool.tasks, len(todo))
        return (todo[i::n] for i in range(n))

    def _task(self, shards: Sequence[Shard]) -> Task:
        rows = np.concatenate([np.arange(shard.first, shard.stop) for shard in shards])
        return Task(self.clips.take(rows), self.records[rows], shards, self.parts, limits())

    def _missing(self, shards: Sequence[Shard], outcome: DecarError | OSError | str | None) -> Sequence[Shard]:
        """The shards of a task that has ended which have to be done again."""
        if isinstance(outcome, DecarError):
            raise outcome
        self.parts.refresh()
        left = [shard for shard in shards if shard.first >= self.journal.committed]
        again = [(shard, found) for shard in left if isinstance(found := self._found(shard), str)]
        if again:
            shard, fault = again[0]  # the one that was worked on
            why, path = str(outcome or fault), self.clips.table["path"][shard.first]
            self.losses[shard] += 1
            if self.losses[shard] == TRIES:
                raise DecarError(
                    f"clips {shard.first + 1} to {shard.stop} ({path} and those behind it): not done by {TRIES} "
                    f"workers, the last time because of: {why}; what is done is kept"
                )
            log.warning("clips %d to %d are embedded again: %s", shard.first + 1, shard.stop, why)
        return [shard for shard, _ in again]

    def _found(self, shard: Shard) -> tuple[list[tuple[int, ClipEnd]], Vectors] | str:
        """What `Parts.read` has found, or why it does not do."""
        try:
            found = self.parts.read(shard)
        except DamagedError as error:
            return f"{self.parts.file(shard)} is damaged, {error}"
        if found is None:
            return "no part file came"
        for row, (_, end) in enumerate(found[0], shard.first):
            if end.reason == NOT_FOUND and (file := self.clips.take([row]).files[0]).exists():
                return f"a machine does not see {file}, which is here: sounds have to lie at the same path on all"
        return found

    def _append(self, advance: Callable[[int], object]) -> None:
        """Append to the journal what is next in order."""
        while self.left and not isinstance(found := self._found(self.left[0]), str):
            shard, (clips, rows), first = self.left.popleft(), found, 0
            for n, end in clips:
                self.journal.rows(rows[first : first + n])
                self.journal.end(end)
                first += n
            self.journal.commit()
            self.parts.drop(shard)
            advance(len(clips))

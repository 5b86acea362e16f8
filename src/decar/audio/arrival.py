"""Clips in batches, each once its files are there: those of a store are fetched ahead, and deleted if room is short."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from itertools import chain
from pathlib import Path

from decar.audio.clips import GROUP_CLIPS, Job
from decar.audio.crops import packed
from decar.audio.manifest import Manifest
from decar.audio.origin import GOES_ON, Origin, fits, reachable
from decar.audio.parallel import in_order
from decar.audio.remote import THREADS, fetched_home
from decar.files import locked
from decar.unpack import saving

log = logging.getLogger(__name__)

GROUP_BYTES = 2**21  # files that a thread fetches at a time, unless one is larger
BATCH_BYTES = 2**26  # files of a batch
PASSING = "passing-"  # before the name of a folder of files that do not stay
SPARE = 0.1  # of the disk
ROOM = 2**30  # bytes of files that wait while a batch is read

Faults = dict[Path, str]


@contextmanager
def arriving(clips: Manifest, first: int) -> Iterator[tuple[Iterable[list[Job]], Faults]]:
    """The jobs of the clips from one on, in batches whose files are there, and why files are missing.

    Files on this disk are one batch. Those of a store are fetched while earlier batches are read. They stay in the
    cache if that takes at most half of its disk's free room and leaves `SPARE` of the disk; otherwise they are deleted
    after their last clip, and what lies on the disk is `ROOM`, two batches, and a group a thread. The cache is that of
    the machine that calls this: clips may be sent to another one.

    Raises:
        ManifestError: The store does not answer, or an object has changed since it was listed.
    """
    if clips.origin is None:
        yield iter([clips.jobs[first:]]), {}
        return
    origin, rows, faults = clips.origin, clips.take(range(first, len(clips))), Faults()
    todo = origin.lacking(dict.fromkeys(rows.table["path"]), origin.home)
    if fits(sum(origin.objects[path].size for path in todo), origin.home, SPARE):
        with closing(_batches(origin, rows, origin.home, faults)) as batches:
            yield batches, faults
        return
    log.info("%s: little room in the cache: each file is deleted after use", origin.address)
    with _passing_folder() as folder, closing(_batches(origin, rows, folder, faults)) as batches:
        yield _passing(batches, Counter(rows.table["path"]), folder), faults


def _batches(origin: Origin, clips: Manifest, folder: Path, faults: Faults) -> Generator[list[Job], None, None]:
    """Jobs of consecutive clips; files are fetched in threads, up to `ROOM` ahead."""

    def size(job: Job) -> int:
        return origin.size(job[0], folder)

    def fetched(group: list[Job]) -> Iterator[list[Job]]:
        for file in dict.fromkeys(file for file, _, _ in group):
            if reason := origin.fetch(file.relative_to(folder).as_posix(), folder):
                faults[file] = reason
        yield group

    jobs = [(folder / path, *stretch) for path, stretch in zip(clips.table["path"], clips.stretches, strict=True)]
    groups = packed(jobs, size, GROUP_BYTES, most=GROUP_CLIPS)
    arrived = in_order(fetched, groups, THREADS, size=lambda group: sum(map(size, group)), room=ROOM)
    with reachable(origin.address, GOES_ON), closing(arrived):
        yield from packed(chain.from_iterable(arrived), size, BATCH_BYTES)


@contextmanager
def _passing_folder() -> Iterator[Path]:
    """A folder of the cache for this process; those of killed ones are deleted."""
    home = fetched_home()
    with saving(home):
        home.mkdir(parents=True, exist_ok=True)
        for old in home.glob(f"{PASSING}*/"):
            with suppress(BlockingIOError), locked(f"{old}.lock", 0):
                shutil.rmtree(old, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=PASSING, dir=home))
    with locked(f"{folder}.lock"):
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _passing(batches: Iterable[list[Job]], uses: Counter[str], folder: Path) -> Iterator[list[Job]]:
    """The batches; when the next one is asked for, files that no later clip needs are deleted."""
    for batch in batches:
        yield batch
        for file, _, _ in batch:
            path = file.relative_to(folder).as_posix()
            uses[path] -= 1
            if not uses[path]:
                file.unlink(missing_ok=True)

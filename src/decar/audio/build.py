"""Builds a log-mel store: clips through a pool of threads, written in manifest order, put in place by one rename.

Threads, not processes: libsndfile, soxr and torch work outside Python's lock, and no result needs to be sent. Torch
takes the lock back after each of its operations, though: two threads with a second of sound an operation wait for one
another half of the time, so short clips are worked on together.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import torch

from decar.audio.decode import Waveform, decode
from decar.audio.logmel import FrontEnd, LogMel, too_short, waveforms_to_frames
from decar.audio.manifest import Manifest
from decar.audio.packing import packed
from decar.audio.partial import JOURNAL_FILE, MEL_FILE, Frames, PartialStore
from decar.audio.progress import progress_bar
from decar.cores import cpu_count
from decar.digests import digest_of, sealed
from decar.errors import AudioError, StoreError

log = logging.getLogger(__name__)

FORMAT = 2
"""Of a store's files; raise it when they, or what is computed into them, change: old stores are then built anew."""

INDEX_FILE = "index.parquet"
META_FILE = "meta.json"
SILENCE_PEAK = 1e-4  # -80 dBFS
SILENT = "silent: no sample above 1e-4"

FLUSH_SECONDS = 2.0  # a kill costs at most this much work
FLUSH_BYTES = 32 * 2**20
LOOK_AHEAD = 8  # jobs in work or waiting, a worker: bounds the memory when one long clip holds up the others
GROUP_CLIPS = 8  # short clips are worked on together, see `waveforms_to_frames`; 16 are no faster
GROUP_BYTES = 2**18  # of files: 8 s of wav at 16 kHz, a minute of Opus
BYTES_PER_SECOND = 32_000  # what a stretch of a file counts for

Job = tuple[Path, float, float | None]
Source = TypeVar("Source")
Result = TypeVar("Result")


def build_store(
    manifest: Manifest, frontend: FrontEnd, folder: Path, *, fingerprint: str, num_workers: int | None, progress: bool
) -> None:
    """Makes the store `folder`, or goes on with what a killed build has left beside it.

    The caller holds the lock, and `folder` does not exist.

    Raises:
        StoreError: no clip at all can be used.
        OSError: the folder cannot be written.
    """
    unfinished = folder.with_name(f"{folder.name}.partial")
    with PartialStore(unfinished, n_mels=frontend.n_mels, n_clips=len(manifest)) as partial, one_torch_thread():
        done = len(partial.lengths)
        if done:
            log.info("going on with the log-mel store %s at clip %d of %d", folder, done, len(manifest))
        jobs = [(file, *stretch) for file, stretch in zip(manifest.files, manifest.stretches, strict=True)][done:]
        with progress_bar("log-mels", len(manifest), enabled=progress) as advance:
            advance(done)
            _fill(partial, jobs, LogMel(frontend), num_workers or cpu_count(), advance)
        lengths, reasons = np.array(partial.lengths, np.int64), partial.reasons
        blocks = partial.blocks.hexdigest()
    if not lengths.any():
        # a list of reasons is no store: the next try starts afresh
        for name in (MEL_FILE, JOURNAL_FILE):
            (unfinished / name).unlink()
        unfinished.rmdir()
        raise StoreError(f"none of the {len(manifest)} clips can be used: {first_reasons(manifest, reasons)}")
    facts: dict[str, object] = {"fingerprint": fingerprint, "frontend": frontend.as_dict(), "blocks": blocks}
    _finish(unfinished, folder, manifest, lengths, reasons, facts)


def first_reasons(manifest: Manifest, reasons: list[str], n: int = 3) -> str:
    """The first clips that something is wrong with, for a message of one line."""
    bad = [(path, reason) for path, reason in zip(manifest.table["path"], reasons, strict=True) if reason]
    more = f"; and {len(bad) - n} more" if len(bad) > n else ""
    return "; ".join(f"{path} ({reason})" for path, reason in bad[:n]) + more


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Each worker thread would else start torch's own threads, one for every core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _fill(
    partial: PartialStore, jobs: list[Job], log_mel: LogMel, num_workers: int, advance: Callable[[int], None]
) -> None:
    """Works off the jobs and appends the results chunk by chunk."""
    chunk: list[tuple[Frames, str]] = []
    size, begin = 0, time.monotonic()

    def flush() -> None:
        nonlocal size, begin
        if chunk:
            partial.append([frames for frames, _ in chunk], [reason for _, reason in chunk])
        chunk.clear()
        size, begin = 0, time.monotonic()

    for results in in_order(lambda group: _log_mels_or_reasons(group, log_mel), groups(jobs), num_workers):
        chunk.extend(results)
        size += sum(frames.nbytes for frames, _ in results)
        if size >= FLUSH_BYTES or time.monotonic() - begin >= FLUSH_SECONDS:
            flush()
        advance(len(results))
    flush()


def groups(jobs: Iterable[Job]) -> Iterator[list[Job]]:
    """Neighbours that are worked on together: a few short clips, or one long one alone."""
    return packed(jobs, _weight, GROUP_BYTES, most=GROUP_CLIPS)


def _weight(job: Job) -> int:
    """About how many bytes are read for a clip."""
    file, _, duration = job
    if duration is not None:
        return round(duration * BYTES_PER_SECOND)
    try:
        return os.stat(file).st_size
    except (OSError, ValueError):  # it is told when the clip is read
        return 0


def in_order(work: Callable[[Source], Result], jobs: Iterable[Source], num_workers: int) -> Iterator[Result]:
    """The results of `work` in the order of the jobs, a bounded number of them at a time."""
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="logmel")
    pending: deque[Future[Result]] = deque()
    try:
        for job in jobs:
            pending.append(pool.submit(work, job))
            if len(pending) >= LOOK_AHEAD * num_workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:  # also after Ctrl-C: what has not begun is dropped
        pool.shutdown(cancel_futures=True)


def _log_mels_or_reasons(group: Sequence[Job], log_mel: LogMel) -> list[tuple[Frames, str]]:
    """For each clip its (F, M) float16 log-mel and "", or what is wrong with it; a silent clip has both."""
    nothing = np.zeros((0, log_mel.spec.n_mels), np.float16)
    try:
        waveforms = [_waveform_or_reason(job, log_mel.spec) for job in group]
        good = [waveform for waveform in waveforms if not isinstance(waveform, str)]
        frames = iter(waveforms_to_frames(log_mel, good) if good else [])
    except Exception as error:  # one odd file in a million must not end a build of ten hours
        if len(group) > 1:
            return [result for job in group for result in _log_mels_or_reasons([job], log_mel)]
        log.debug("%s", group[0][0], exc_info=True)
        return [(nothing, f"cannot be processed ({type(error).__name__}: {' '.join(str(error).split())})")]
    results: list[tuple[Frames, str]] = []
    for waveform in waveforms:
        if isinstance(waveform, str):
            results.append((nothing, waveform))
        elif not np.isfinite(mel := next(frames)).all():  # full scale is 1, these samples are near 1e38
            results.append((nothing, "samples too large for a spectrum"))
        else:
            results.append((mel, SILENT if np.abs(waveform).max() <= SILENCE_PEAK else ""))
    return results


def _waveform_or_reason(job: Job, spec: FrontEnd) -> Waveform | str:
    """One clip, or what is wrong with it."""
    file, start, duration = job
    try:
        waveform = decode(file, start=start, duration=duration, sample_rate=spec.sample_rate)
    except AudioError as error:
        return str(error)
    return waveform if spec.n_frames(len(waveform)) else too_short(len(waveform), spec)


def _finish(
    unfinished: Path,
    folder: Path,
    manifest: Manifest,
    lengths: np.ndarray,
    reasons: list[str],
    facts: dict[str, object],
) -> None:
    """Writes index and facts, and gives the folder its name: it is there whole or not at all."""
    status = ["good" if not why else "silent" if n else "bad" for why, n in zip(reasons, lengths, strict=True)]
    columns = {
        "path": manifest.table["path"],
        "offset": np.cumsum(lengths) - lengths,
        "frames": lengths,
        "status": status,
        "reason": reasons,
    }
    pd.DataFrame(columns).to_parquet(unfinished / INDEX_FILE)
    counts = {"n_clips": len(lengths), "n_frames": int(lengths.sum())}
    meta = {"format": FORMAT, **facts, **counts, "index": digest_of(unfinished / INDEX_FILE)}
    (unfinished / META_FILE).write_text(sealed(meta, indent=1), encoding="utf-8")
    (unfinished / JOURNAL_FILE).unlink()
    for name in (INDEX_FILE, META_FILE):
        _sync(unfinished / name)
    _sync(unfinished)
    os.replace(unfinished, folder)
    _sync(folder.parent)


def _sync(path: Path) -> None:
    """Forces a file, or the names in a folder, to the disk."""
    if os.name != "posix" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

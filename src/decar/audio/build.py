"""Builds a log-mel store: clips through a pool of threads, written in manifest order, put in place by one rename.

Torch takes Python's lock back after each of its operations: two threads with a second of sound an operation wait for
one another half of the time, so short clips are worked on together. Of a long clip 10 s at a time are in memory.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from decar.audio.decode import Waveform, decode_blocks
from decar.audio.logmel import FrontEnd, LogMel, blocks_to_frames, checked, too_short, waveforms_to_frames
from decar.audio.manifest import Manifest
from decar.audio.packing import packed
from decar.audio.parallel import in_order
from decar.audio.partial import JOURNAL_FILE, MEL_FILE, Frames, PartialStore
from decar.audio.progress import progress_bar
from decar.audio.samples import Gauge
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
GROUP_CLIPS = 8  # short clips are worked on together, see `waveforms_to_frames`; 16 are no faster
GROUP_BYTES = 2**18  # of files: 8 s of wav at 16 kHz, a minute of Opus
GROUP_SECONDS = 60  # of a clip in a group: a longer one, whatever the size of its file, is worked on alone
BYTES_PER_SECOND = 32_000  # what a stretch of a file counts for

Job = tuple[Path, float, float | None]
Part = tuple[Frames, str | None]
"""(F, M) float16 frames of a clip and, where they are its last, what is wrong with it ("": nothing); else None."""


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
    pile = _Pile(partial)

    def size(parts: list[Part]) -> int:
        return sum(frames.nbytes for frames, _ in parts)

    for parts in in_order(lambda group: _log_mels(group, log_mel), groups(jobs), num_workers, size=size):
        for part in parts:
            pile.add(part)
        pile.flush(when_due=True)
        advance(sum(reason is not None for _, reason in parts))
    pile.flush()


class _Pile:
    """Clips on their way to the disk, and the first parts of one that has not ended."""

    def __init__(self, partial: PartialStore) -> None:
        self._partial = partial
        self._clips: list[Frames] = []
        self._reasons: list[str] = []
        self._open: list[Frames] = []
        self._size, self._begin = 0, time.monotonic()

    def add(self, part: Part) -> None:
        """Takes the next part."""
        frames, reason = part
        self._open.append(frames)
        self._size += frames.nbytes
        if reason is None:
            return
        if reason not in ("", SILENT):  # whatever came of the clip before that was found
            self._partial.drop()
            self._open = [frames]
        self._clips.append(self._open[0] if len(self._open) == 1 else np.concatenate(self._open))
        self._reasons.append(reason)
        self._open = []

    def flush(self, when_due: bool = False) -> None:
        """Writes all that there is; `when_due`: if it is much or old."""
        if when_due and self._size < FLUSH_BYTES and time.monotonic() - self._begin < FLUSH_SECONDS:
            return
        if self._clips:
            self._partial.append(self._clips, self._reasons)
        if self._open:
            self._partial.begin(self._open)
        self._clips, self._reasons, self._open = [], [], []
        self._size, self._begin = 0, time.monotonic()


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


class _LongError(Exception):
    """A clip does not belong into a group."""


def _log_mels(group: Sequence[Job], log_mel: LogMel) -> Iterator[list[Part]]:
    """The log-mel of each clip, and what is wrong with it; a silent clip has both."""
    together: list[Part] = []
    if len(group) > 1:
        try:
            together = _together(group, log_mel)
        except Exception:  # one odd or long file: each is worked on alone, where the odd one is named
            log.debug("%s and %d others", group[0][0], len(group) - 1, exc_info=True)
    if together:
        yield together
    else:
        for job in group:
            yield from ([part] for part in _alone(job, log_mel))


def _together(group: Sequence[Job], log_mel: LogMel) -> list[Part]:
    """Short clips, each in one part."""
    waveforms = [_waveform_or_reason(job, log_mel.spec) for job in group]
    good = [waveform for waveform in waveforms if not isinstance(waveform, str)]
    frames = map(checked, waveforms_to_frames(log_mel, good) if good else [])
    return [
        (_nothing(log_mel), waveform) if isinstance(waveform, str) else (next(frames), _silent(np.abs(waveform).max()))
        for waveform in waveforms
    ]


def _alone(job: Job, log_mel: LogMel) -> Iterator[Part]:
    """A clip of any length, 10 s a part; never raises."""
    file, start, duration = job
    gauge = Gauge()
    try:
        blocks = decode_blocks(file, start=start, duration=duration, sample_rate=log_mel.spec.sample_rate)
        for frames in blocks_to_frames(log_mel, gauge.watch(blocks)):
            yield frames, None
        reason = _silent(gauge.peak)
    except AudioError as error:
        reason = str(error)
    except Exception as error:
        log.debug("%s", file, exc_info=True)
        reason = f"cannot be processed ({type(error).__name__}: {' '.join(str(error).split())})"
    yield _nothing(log_mel), reason


def _waveform_or_reason(job: Job, spec: FrontEnd) -> Waveform | str:
    """One short clip, or what is wrong with it."""
    file, start, duration = job
    blocks, n_samples = [np.zeros(0, np.float32)], 0
    try:
        for block in decode_blocks(file, start=start, duration=duration, sample_rate=spec.sample_rate):
            blocks.append(block)
            n_samples += len(block)
            if n_samples > GROUP_SECONDS * spec.sample_rate:
                raise _LongError
    except AudioError as error:
        return str(error)
    return np.concatenate(blocks) if spec.n_frames(n_samples) else too_short(n_samples, spec)


def _nothing(log_mel: LogMel) -> Frames:
    return np.zeros((0, log_mel.spec.n_mels), np.float16)


def _silent(peak: float) -> str:
    return SILENT if peak <= SILENCE_PEAK else ""


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

"""Builds a log-mel store: rows of frames through the journal, then index and facts, put in place by one rename."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from decar.audio.clips import ClipEnd, Piece, Windows, one_torch_thread, read_clips
from decar.audio.journal import JOURNAL_FILE, Journal
from decar.audio.logmel import BLOCK_FRAMES, FrontEnd
from decar.audio.manifest import Manifest
from decar.audio.progress import progress_bar
from decar.cores import cpu_count
from decar.digests import digest_of, sealed
from decar.errors import StoreError
from decar.files import sync

log = logging.getLogger(__name__)

FORMAT = 2
"""Of a store's files; raise it when they, or what is computed into them, change: old stores are then built anew."""

MEL_FILE = "mel.f16"
INDEX_FILE = "index.parquet"
META_FILE = "meta.json"
SILENT = "silent: no sample above 1e-4"

COMMIT_SECONDS = 2.0  # a kill costs at most this much work, and that of the clip at hand


def build_store(
    folder: Path, manifest: Manifest, frontend: FrontEnd, fingerprint: str, *, num_workers: int | None, progress: bool
) -> None:
    """Build the store `folder`, or continue what a killed build has left beside it.

    The caller holds the lock, and `folder` does not exist.

    Raises:
        StoreError: No clip can be used.
        OSError: The folder cannot be written.
    """
    unfinished = folder.with_name(f"{folder.name}.partial")
    unfinished.mkdir(parents=True, exist_ok=True)
    with Journal(unfinished / MEL_FILE, np.float16, frontend.n_mels, len(manifest)) as journal, one_torch_thread():
        done, committed = journal.committed, time.monotonic()
        if done:
            log.info("going on with the log-mel store %s at clip %d of %d", folder, done, len(manifest))
        with progress_bar("log-mels", len(manifest), enabled=progress) as advance:
            advance(done)
            whole_clips = Windows(None, None, frontend, BLOCK_FRAMES)
            for event in read_clips(manifest.jobs[done:], whole_clips, num_workers or cpu_count()):
                if isinstance(event, Piece):
                    journal.rows(event.mel)
                elif isinstance(event, ClipEnd):
                    journal.end(event)
                    advance(1)
                    if time.monotonic() - committed >= COMMIT_SECONDS:
                        journal.commit()
                        committed = time.monotonic()
        journal.commit()
    lengths = np.array(journal.counts, np.int64)
    reasons = [end.reason or (SILENT if end.silent else "") for end in journal.ends]
    if not lengths.any():
        for name in (MEL_FILE, JOURNAL_FILE):  # the next try starts afresh
            (unfinished / name).unlink()
        unfinished.rmdir()
        raise StoreError(f"none of the {len(manifest)} clips can be used: {first_reasons(manifest, reasons)}")
    facts = {"fingerprint": fingerprint, "frontend": frontend.as_dict(), "blocks": journal.blocks.hexdigest()}
    _finish(unfinished, folder, manifest, lengths, reasons, facts)


def first_reasons(manifest: Manifest, reasons: list[str], n: int = 3) -> str:
    """The first clips that something is wrong with, for a message of one line."""
    bad = [(path, reason) for path, reason in zip(manifest.table["path"], reasons, strict=True) if reason]
    more = f"; and {len(bad) - n} more" if len(bad) > n else ""
    return "; ".join(f"{path} ({reason})" for path, reason in bad[:n]) + more


def _finish(
    unfinished: Path,
    folder: Path,
    manifest: Manifest,
    lengths: np.ndarray,
    reasons: list[str],
    facts: Mapping[str, object],
) -> None:
    """Write index and facts, and rename the folder: readers find all of it or nothing."""
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
        sync(unfinished / name)
    sync(unfinished)
    os.replace(unfinished, folder)
    sync(folder.parent)

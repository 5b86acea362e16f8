"""A half-built store on disk that outlives a kill at any moment.

The log-mels of a chunk of clips are appended to `mel.f16` and forced to the disk; only then a line about them is
appended to `journal.jsonl`. So every whole line speaks of data that are there, and what lies behind the last whole
line is cut off and made anew. The frames of a long clip are appended as they come; its line follows at its end.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

MEL_FILE = "mel.f16"
JOURNAL_FILE = "journal.jsonl"

Frames = npt.NDArray[np.float16]


class PartialStore:
    """Appends clips in manifest order; on entering, finds what an earlier, killed process has left.

    Args:
        folder: where the two files lie; made when missing.
        n_mels: M, columns of a frame.
        n_clips: N, clips of the finished store.

    Attributes:
        lengths: frames of each clip that is safely on disk.
        reasons: what is wrong with each of them, "" for nothing.
    """

    def __init__(self, folder: Path, *, n_mels: int, n_clips: int) -> None:
        self.folder = folder
        self.n_mels = n_mels
        self.n_clips = n_clips
        self.lengths: list[int] = []
        self.reasons: list[str] = []
        self._begun = 0  # frames of the next clip that are written already

    def __enter__(self) -> PartialStore:
        self.folder.mkdir(parents=True, exist_ok=True)
        # unbuffered: after a full disk there is no half-written buffer that closing would try to write once more
        self._mel = open(self.folder / MEL_FILE, "ab", buffering=0)
        self._journal = open(self.folder / JOURNAL_FILE, "ab", buffering=0)
        self._recover()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._mel.close()
        self._journal.close()

    def append(self, frames: Iterable[Frames], reasons: list[str]) -> None:
        """Adds the next clips; when this returns, they are on the disk.

        Args:
            frames: (F, M) of each clip, F = 0 for a clip that cannot be used; of the first clip what `begin` has not
                been given.
            reasons: what is wrong with each, "" for nothing.

        Raises:
            OSError: the disk is full or gone; what was appended before stays valid.
        """
        chunk = list(frames)
        lengths = [len(clip) for clip in chunk]
        lengths[0] += self._begun
        self._write(chunk)
        os.fsync(self._mel.fileno())
        line = json.dumps({"frames": lengths, "reasons": reasons}) + "\n"
        _write_all(self._journal.fileno(), line.encode())
        os.fsync(self._journal.fileno())
        self.lengths += lengths
        self.reasons += reasons
        self._begun = 0

    def begin(self, frames: Iterable[Frames]) -> None:
        """Writes frames of the next clip ahead of its end: they count when `append` adds that clip.

        Raises:
            OSError: as of `append`.
        """
        chunk = list(frames)
        self._write(chunk)
        self._begun += sum(map(len, chunk))

    def drop(self) -> None:
        """Takes back what `begin` has written: the clip cannot be used after all."""
        if self._begun:
            self._keep(sum(self.lengths))
            self._begun = 0

    def _write(self, frames: list[Frames]) -> None:
        """The one place where `mel.f16` grows."""
        _write_all(self._mel.fileno(), np.concatenate(frames).tobytes())

    def _keep(self, rows: int) -> None:
        """The one place where `mel.f16` is cut: all but the first `rows` frames are dropped."""
        os.truncate(self.folder / MEL_FILE, rows * self._row_bytes)

    def _recover(self) -> None:
        """Reads the journal up to its last good line and cuts both files there."""
        rows_on_disk = (self.folder / MEL_FILE).stat().st_size // self._row_bytes
        rows = good_bytes = 0
        for line in (self.folder / JOURNAL_FILE).read_bytes().splitlines(keepends=True):
            entry = _parse(line)
            if entry is None:
                break
            lengths, reasons = entry
            # a journal that promises more than there is: after a power cut, the disk may have kept the one and lost
            # the other
            if rows + sum(lengths) > rows_on_disk or len(self.lengths) + len(lengths) > self.n_clips:
                break
            self.lengths += lengths
            self.reasons += reasons
            rows += sum(lengths)
            good_bytes += len(line)
        os.truncate(self.folder / JOURNAL_FILE, good_bytes)
        self._keep(rows)

    @property
    def _row_bytes(self) -> int:
        return self.n_mels * np.dtype(np.float16).itemsize


def _parse(line: bytes) -> tuple[list[int], list[str]] | None:
    """A journal line, or None when it is torn."""
    if not line.endswith(b"\n"):
        return None
    try:
        entry = json.loads(line)
        lengths, reasons = [int(n) for n in entry["frames"]], [str(reason) for reason in entry["reasons"]]
    except (ValueError, TypeError, KeyError):
        return None
    return (lengths, reasons) if len(lengths) == len(reasons) and min(lengths, default=0) >= 0 else None


def _write_all(descriptor: int, data: bytes) -> None:
    """os.write may take a part only, and does so on a disk that is nearly full."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]

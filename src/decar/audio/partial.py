"""A half-built store on disk that outlives a kill at any moment.

The log-mels of a chunk of clips are appended to `mel.f16` and forced to the disk; only then a line about them is
appended to `journal.jsonl`, with a digest of their bytes and one of itself. A build that goes on compares both, cuts
the files behind the last line that fits, and computes the rest anew. The frames of a long clip are appended as they
come; its line follows at its end.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import xxhash

from decar.audio.blocks import BLOCK_BYTES, BlockHasher
from decar.digests import DamagedError, sealed, unsealed

log = logging.getLogger(__name__)

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
        blocks: the digests of `mel.f16` so far.
    """

    def __init__(self, folder: Path, *, n_mels: int, n_clips: int) -> None:
        self.folder = folder
        self.n_mels = n_mels
        self.n_clips = n_clips
        self.lengths: list[int] = []
        self.reasons: list[str] = []
        self.blocks = BlockHasher()
        self._chunk = xxhash.xxh3_64()  # of the bytes since the last line of the journal
        self._begun = 0  # frames of the next clip that are written already
        self._before = self.blocks  # without these

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
        self._write(np.concatenate(chunk).tobytes())
        os.fsync(self._mel.fileno())
        entry = {"frames": lengths, "reasons": reasons, "data": self._chunk.hexdigest()}
        _write_all(self._journal.fileno(), f"{sealed(entry)}\n".encode())
        os.fsync(self._journal.fileno())
        self._chunk.reset()
        self.lengths += lengths
        self.reasons += reasons
        self._begun = 0

    def begin(self, frames: Iterable[Frames]) -> None:
        """Writes frames of the next clip ahead of its end: they count when `append` adds that clip.

        Raises:
            OSError: as of `append`.
        """
        if not self._begun:
            self._before = self.blocks.copy()
        chunk = list(frames)
        self._begun += sum(map(len, chunk))
        self._write(np.concatenate(chunk).tobytes())

    def drop(self) -> None:
        """Takes back what `begin` has written: the clip cannot be used after all."""
        if self._begun:
            self._keep(sum(self.lengths))
            self.blocks = self._before
            self._chunk.reset()
            self._begun = 0

    def _keep(self, rows: int) -> None:
        """The one place where `mel.f16` is cut: all but the first `rows` frames are dropped."""
        os.truncate(self.folder / MEL_FILE, rows * self._row_bytes)

    def _write(self, data: bytes) -> None:
        """Append bytes to `mel.f16`."""
        self._chunk.update(data)
        self.blocks.update(data)
        _write_all(self._mel.fileno(), data)

    def _recover(self) -> None:
        """Reads the journal up to its last good line and cuts both files there."""
        rows = good_bytes = 0
        with open(self.folder / MEL_FILE, "rb") as mel:
            for line in (self.folder / JOURNAL_FILE).read_bytes().splitlines(keepends=True):
                if not line.endswith(b"\n"):  # torn by a kill
                    break
                try:
                    entry = _parse(line, self.n_clips - len(self.lengths))
                    self.blocks = self._compared(mel, entry)
                except DamagedError as error:
                    log.warning("%s is damaged (%s): going on before that", self.folder, error)
                    break
                self.lengths += entry.lengths
                self.reasons += entry.reasons
                rows += sum(entry.lengths)
                good_bytes += len(line)
        os.truncate(self.folder / JOURNAL_FILE, good_bytes)
        self._keep(rows)

    def _compared(self, mel: BinaryIO, entry: _Entry) -> BlockHasher:
        """The digests of `mel.f16` with the next chunk, after comparing the chunk with its digest."""
        blocks, chunk, missing = self.blocks.copy(), xxhash.xxh3_64(), sum(entry.lengths) * self._row_bytes
        while missing and (data := mel.read(min(missing, BLOCK_BYTES))):
            blocks.update(data)
            chunk.update(data)
            missing -= len(data)
        if chunk.hexdigest() != entry.data:
            raise DamagedError(f"{MEL_FILE} at clip {len(self.lengths) + 1}")
        return blocks

    @property
    def _row_bytes(self) -> int:
        return self.n_mels * np.dtype(np.float16).itemsize


@dataclass(frozen=True)
class _Entry:
    """A journal line: frames and reasons of the clips of a chunk, and the digest of their bytes."""

    lengths: list[int]
    reasons: list[str]
    data: str


def _parse(line: bytes, most: int) -> _Entry:
    """A journal line of up to `most` clips.

    Raises:
        DamagedError: It is damaged, or not of this store.
    """
    try:
        found = unsealed(line)
        entry = _Entry([int(n) for n in found["frames"]], [str(why) for why in found["reasons"]], str(found["data"]))
    except (ValueError, TypeError, KeyError) as error:
        raise DamagedError(f"{JOURNAL_FILE}: {error}") from error
    if not (len(entry.lengths) == len(entry.reasons) <= most and min(entry.lengths, default=0) >= 0):
        raise DamagedError(f"{JOURNAL_FILE}: a line of other clips")
    return entry


def _write_all(descriptor: int, data: bytes) -> None:
    """os.write may take a part only, and does so on a disk that is nearly full."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]

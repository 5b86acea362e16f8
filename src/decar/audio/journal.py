"""Rows in a file, and a journal by which a killed process continues: log-mels of a store, embeddings of `decar embed`.

Rows are appended to the data file as they are made. `Journal.commit` forces them to the disk, then appends a line to
`journal.jsonl`: the clips since the last commit, a digest of their rows, and a digest of the line. The next process
compares both files with these digests, cuts them behind the last line that fits, and makes the rest anew.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import xxhash
from numpy.typing import DTypeLike, NDArray

from decar.audio.blocks import BLOCK_BYTES, BlockHasher
from decar.audio.clips import ClipEnd
from decar.digests import DamagedError, sealed, unsealed

log = logging.getLogger(__name__)

JOURNAL_FILE = "journal.jsonl"
BUFFER_BYTES = 2**20  # to a write, each of which hands Python's lock to the threads that decode


class Journal:
    """Appends the rows of clips in order. On entering, it recovers what an earlier, killed process has left.

    Args:
        data: The file of rows; `journal.jsonl` lies beside it. Its folder exists.
        dtype: Of a row's numbers.
        width: Numbers of a row.
        n_clips: Clips of the finished file.

    Attributes:
        counts: Rows of each clip that has ended.
        ends: How each ended.
        n_rows: Sum of `counts`.
        committed: Clips that survive a kill.
        blocks: The digests of the rows of these clips.
    """

    def __init__(self, data: Path, dtype: DTypeLike, width: int, n_clips: int) -> None:
        self.data, self.path = data, data.with_name(JOURNAL_FILE)
        self.dtype, self.width, self.n_clips = np.dtype(dtype), width, n_clips
        self.counts: list[int] = []
        self.ends: list[ClipEnd] = []
        self.n_rows = self.committed = 0
        self.blocks = BlockHasher()
        self._digest = xxhash.xxh3_64()  # of the rows since the last commit
        self._begun = 0  # rows of the clip that has not ended
        self._buffer = bytearray()

    def __enter__(self) -> Journal:
        # unbuffered: Python would try to write its buffer once more when closing, also after a full disk
        self._rows = open(self.data, "ab", buffering=0)
        self._lines = open(self.path, "ab", buffering=0)
        self._recover()
        self._mark()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rows.close()
        self._lines.close()

    def rows(self, rows: NDArray[Any]) -> None:
        """Append rows `(R, width)` of the next clip.

        Raises:
            OSError: The disk is full or gone; what is committed stays valid. The same holds for `commit`.
        """
        data = np.ascontiguousarray(rows, self.dtype).tobytes()
        self._digest.update(data)
        self.blocks.update(data)
        self._buffer += data
        self._begun += len(rows)
        if len(self._buffer) >= BUFFER_BYTES:
            self._flush()

    def end(self, end: ClipEnd) -> None:
        """The clip is over. The rows of one that cannot be used are dropped."""
        if end.reason and self._begun:
            self._flush()
            self._cut()
            digest, mark = self._before
            self._digest = digest
            self.blocks.reset(mark)
            self._begun = 0
        self.counts.append(self._begun)
        self.ends.append(end)
        self.n_rows += self._begun
        self._begun = 0
        self._mark()

    def commit(self) -> None:
        """Make the clips so far survive a kill. Does nothing within a clip."""
        new = slice(self.committed, None)
        if not self.ends[new] or self._begun:
            return
        self._flush()
        os.fsync(self._rows.fileno())
        line = as_line(self.counts[new], self.ends[new], self._digest.hexdigest())
        _write_all(self._lines.fileno(), f"{line}\n".encode())
        os.fsync(self._lines.fileno())
        self._digest.reset()
        self._mark()
        self.committed = len(self.ends)

    def matrix(self) -> NDArray[Any]:
        """All rows `(R, width)`, once they are committed, by memory map."""
        shape = (self.n_rows, self.width)
        return np.memmap(self.data, self.dtype, "r", shape=shape) if self.n_rows else np.zeros(shape, self.dtype)

    def _mark(self) -> None:
        """Remember the digests, to return to when the next clip is dropped."""
        self._before = self._digest.copy(), self.blocks.mark()

    def _flush(self) -> None:
        """Write the rows of the buffer."""
        _write_all(self._rows.fileno(), self._buffer)
        self._buffer.clear()

    def _cut(self) -> None:
        """Cut the data file behind the rows of the clips that have ended."""
        os.truncate(self.data, self.n_rows * self._row_bytes)

    @property
    def _row_bytes(self) -> int:
        return self.width * self.dtype.itemsize

    def _recover(self) -> None:
        """Read the journal up to its last good line, and cut both files there."""
        good_bytes = 0
        with open(self.data, "rb") as data:
            for line in self.path.read_bytes().splitlines(keepends=True):
                if not line.endswith(b"\n"):  # torn by a kill
                    break
                try:
                    clips, digest = parse_line(line, self.n_clips - len(self.ends))
                    n_rows = sum(n for n, _ in clips)
                    self._compare(data, n_rows, digest)
                except DamagedError as error:
                    log.warning("%s is damaged (%s): going on before that", self.data.parent, error)
                    break
                self.counts += [n for n, _ in clips]
                self.ends += [end for _, end in clips]
                self.n_rows += n_rows
                good_bytes += len(line)
        os.truncate(self.path, good_bytes)
        self._cut()
        self.committed = len(self.ends)

    def _compare(self, data: BinaryIO, rows: int, expected: str) -> None:
        """Compare the next rows with their digest.

        Raises:
            DamagedError: They differ, or some are missing.
        """
        digest, mark, missing = xxhash.xxh3_64(), self.blocks.mark(), rows * self._row_bytes
        while missing and (chunk := data.read(min(missing, BLOCK_BYTES))):
            digest.update(chunk)
            self.blocks.update(chunk)
            missing -= len(chunk)
        if digest.hexdigest() != expected:
            self.blocks.reset(mark)
            raise DamagedError(f"{self.data.name} at clip {len(self.ends) + 1}")


def as_line(counts: Sequence[int], ends: Sequence[ClipEnd], digest: str, **more: str) -> str:
    """A line of a journal, without its end: the rows and the end of each clip, and the digest of their rows."""
    clips = [[n, e.n_samples, e.reason, e.silent] for n, e in zip(counts, ends, strict=True)]
    return sealed({"clips": clips, "rows": digest, **more})


def parse_line(line: bytes, most: int) -> tuple[list[tuple[int, ClipEnd]], str]:
    """The rows and the end of each clip of a line, and the digest of their rows.

    Raises:
        DamagedError: The line is damaged, or has more than `most` clips.
    """
    try:
        found = unsealed(line)
        if "clips" not in found:
            raise ValueError("written by another version of decar")
        clips = [(int(n), ClipEnd(int(t), str(why), bool(silent))) for n, t, why, silent in found["clips"]]
        if len(clips) > most or min((n for n, _ in clips), default=0) < 0:
            raise ValueError("a line of other clips")
        return clips, str(found["rows"])
    except (ValueError, TypeError, KeyError) as error:
        raise DamagedError(f"{JOURNAL_FILE}: {error}") from error


def _write_all(descriptor: int, data: bytes | bytearray) -> None:
    """`os.write` may take a part only, and does so on a disk that is nearly full."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]

"""What a killed `decar embed` leaves beside its output, and how the next one goes on from it.

`vectors.f32` holds rows as they were made; a line of `journal.jsonl` speaks of the clips of one commit, once their rows
are on the disk, with a digest of the rows and one of itself. What lies behind the last line that fits is cut off.
`key.txt` says of which encoder, clips and options.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import xxhash
from numpy.typing import NDArray

from decar.digests import CHUNK, DamagedError, sealed, unsealed
from decar.embedder.reading import ClipEnd

log = logging.getLogger(__name__)

VECTORS, JOURNAL, KEY = "vectors.f32", "journal.jsonl", "key.txt"


class Parts:
    """A sink on disk that outlives a kill at any moment.

    Args:
        folder: Where the files lie; what is there of another key is thrown away.
        key: Of encoder, clips and options.
        dim: `D`, columns of a row.

    Attributes:
        ends: How each finished clip ended.
        counts: Rows of each.
    """

    def __init__(self, folder: Path, key: str, dim: int) -> None:
        self.folder, self.key, self.dim = folder, key, dim
        self.ends: list[ClipEnd] = []
        self.counts: list[int] = []
        self.committed = 0  # clips
        self._digest = xxhash.xxh3_64()  # of the rows since the last commit
        self._digest_before_clip = self._digest.copy()

    def __enter__(self) -> Parts:
        if not self._ours():
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            (self.folder / KEY).write_text(self.key)
        self._vectors = open(self.folder / VECTORS, "ab", buffering=0)
        self._journal = open(self.folder / JOURNAL, "ab", buffering=0)
        self._recover()
        self._clip_rows = 0
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._vectors.close()
        self._journal.close()

    @property
    def n_rows(self) -> int:
        """Rows of the finished clips."""
        return sum(self.counts)

    def rows(self, vectors: NDArray[np.float32]) -> None:
        """See `Sink`."""
        data = np.ascontiguousarray(vectors, "<f4").tobytes()
        self._digest.update(data)
        _write_all(self._vectors.fileno(), data)
        self._clip_rows += len(vectors)

    def clip(self, end: ClipEnd) -> None:
        """See `Sink`."""
        if end.reason and self._clip_rows:  # found out late, in the middle of the file
            os.truncate(self.folder / VECTORS, self.n_rows * self.dim * 4)
            self._digest = self._digest_before_clip
        self._digest_before_clip = self._digest.copy()
        self.counts.append(0 if end.reason else self._clip_rows)
        self.ends.append(end)
        self._clip_rows = 0

    def commit(self) -> None:
        """See `Sink`."""
        new = slice(self.committed, None)
        entries = [[n, e.n_samples, e.reason, e.silent] for n, e in zip(self.counts[new], self.ends[new], strict=True)]
        if not entries:
            return
        os.fsync(self._vectors.fileno())
        line = sealed({"clips": entries, "rows": self._digest.hexdigest()})
        _write_all(self._journal.fileno(), f"{line}\n".encode())
        os.fsync(self._journal.fileno())
        self._digest.reset()
        self._digest_before_clip.reset()
        self.committed = len(self.ends)

    def matrix(self) -> NDArray[np.float32]:
        """`(R, D)`, by memory map."""
        shape = (self.n_rows, self.dim)
        if not self.n_rows:
            return np.zeros(shape, np.float32)
        return np.memmap(self.folder / VECTORS, "<f4", "r", shape=shape)

    def _ours(self) -> bool:
        try:
            return (self.folder / KEY).read_text() == self.key
        except (OSError, ValueError):
            return False

    def _recover(self) -> None:
        """Reads the journal up to its last good line and cuts both files there."""
        good = 0
        with open(self.folder / VECTORS, "rb") as vectors:
            for line in (self.folder / JOURNAL).read_bytes().splitlines(keepends=True):
                if not line.endswith(b"\n"):  # torn by a kill
                    break
                try:
                    counts, ends = self._compared(vectors, line)
                except (ValueError, TypeError, KeyError) as error:
                    log.warning("%s is damaged (%s): going on before that", self.folder, error)
                    break
                self.counts += counts
                self.ends += ends
                good += len(line)
        os.truncate(self.folder / JOURNAL, good)
        os.truncate(self.folder / VECTORS, self.n_rows * self.dim * 4)
        self.committed = len(self.ends)

    def _compared(self, vectors: BinaryIO, line: bytes) -> tuple[list[int], list[ClipEnd]]:
        """Counts and ends of a commit, after comparing its line and its rows with their digests."""
        found = unsealed(line)
        entries = [(int(n), ClipEnd(int(t), str(why), bool(silent))) for n, t, why, silent in found["clips"]]
        digest, missing = xxhash.xxh3_64(), sum(n for n, _ in entries) * self.dim * 4
        while missing > 0 and (data := vectors.read(min(missing, CHUNK))):
            digest.update(data)
            missing -= len(data)
        if digest.hexdigest() != found["rows"]:
            raise DamagedError(f"{VECTORS} at clip {len(self.ends) + 1}")
        return [n for n, _ in entries], [end for _, end in entries]


def _write_all(descriptor: int, data: bytes) -> None:
    """os.write may take a part only, and does so on a disk that is nearly full."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]

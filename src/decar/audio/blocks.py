"""Digests of `mel.f16`, a block of 1 MiB each: made while the file is written, compared when a block is first read."""

from __future__ import annotations

import mmap
import os
import socket
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from decar.digests import DamagedError

BLOCK_BYTES = 2**20
DIGEST_DIGITS = 16  # hexadecimal, a block


class BlockHasher:
    """The digests of what is written to a file in order, in pieces of any length."""

    def __init__(self) -> None:
        self._full: list[str] = []
        self._block, self._filled = xxhash.xxh3_64(), 0

    def update(self, data: bytes | memoryview) -> None:
        """The next bytes."""
        view = memoryview(data)
        while view:
            part = view[: BLOCK_BYTES - self._filled]
            self._block.update(part)
            self._filled += len(part)
            view = view[len(part) :]
            if self._filled == BLOCK_BYTES:
                self._full.append(self._block.hexdigest())
                self._block, self._filled = xxhash.xxh3_64(), 0

    def mark(self) -> tuple[int, xxhash.xxh3_64, int]:
        """The state, for one `reset`."""
        return len(self._full), self._block.copy(), self._filled

    def reset(self, mark: tuple[int, xxhash.xxh3_64, int]) -> None:
        """Forget what came after `mark`."""
        n_full, self._block, self._filled = mark
        del self._full[n_full:]

    def hexdigest(self) -> str:
        """`DIGEST_DIGITS` digits for each block so far, the last of which may be short."""
        return "".join(self._full) + (self._block.hexdigest() if self._filled else "")


class Blocks:
    """Compares the blocks of a file with their digests, each once, or once more after `forget`.

    Processes forked from one another share the list of what has been compared: loader workers do not read again what
    the pass over the whole set has read. Blocks are read with `pread`, not through a memory map, because a disk error
    is then an exception and not the end of the process.

    Args:
        file: The file.
        digests: `DIGEST_DIGITS` digits a block.
        row_bytes: Bytes of a row of the file.

    Raises:
        OSError: The file cannot be opened.
        DamagedError: There are more or fewer blocks than digests.
    """

    def __init__(self, file: Path, digests: str, row_bytes: int) -> None:
        self.file, self.digests, self.row_bytes = file, digests, row_bytes
        descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        weakref.finalize(self, os.close, descriptor)
        self._descriptor = descriptor
        if len(digests) != -(-os.fstat(descriptor).st_size // BLOCK_BYTES) * DIGEST_DIGITS:
            raise DamagedError("the checksums are of a file of another length")
        self._checked = mmap.mmap(-1, max(len(self), 1))  # shared by forked processes

    def __len__(self) -> int:
        return len(self.digests) // DIGEST_DIGITS

    def check_rows(self, begin: int, end: int) -> None:
        """Compare the blocks that rows `begin` to `end` lie in, unless they have been compared before.

        Raises:
            DamagedError: One is damaged, or cannot be read.
        """
        first, stop = begin * self.row_bytes // BLOCK_BYTES, -(-end * self.row_bytes // BLOCK_BYTES)
        number = self._checked.find(b"\0", first, stop)
        while number >= 0:
            reason = self._compare(number)
            if reason:
                raise DamagedError(f"block {number + 1} of {len(self)}: {reason}", number)
            self._checked[number] = 1
            number = self._checked.find(b"\0", number + 1, stop)

    @property
    def checked(self) -> bytes:
        """A byte a block: 1 where it has been compared, and fits."""
        return bytes(self._checked)

    def trust(self, checked: bytes) -> None:
        """Count blocks as compared that another process of this machine has compared, in the same file."""
        for number in np.flatnonzero(np.frombuffer(checked, np.uint8)).tolist():
            self._checked[number] = 1

    def file_id(self) -> tuple[str, int, int, int]:
        """Which file this is, on which machine."""
        status = os.fstat(self._descriptor)
        return socket.gethostname(), status.st_dev, status.st_ino, status.st_mtime_ns

    def forget(self) -> None:
        """Compare every block again when it is read next."""
        self._checked[:] = bytes(len(self._checked))

    def damaged(self, most_bytes: int | None = None) -> Iterator[tuple[int, str]]:
        """Each damaged block of the file, or of its first bytes, and what is wrong with it."""
        wanted = len(self) if most_bytes is None else min(len(self), most_bytes // BLOCK_BYTES)
        for number in range(wanted):
            reason = self._compare(number)
            if reason:
                yield number, reason
            else:
                self._checked[number] = 1

    def rows(self, number: int) -> range:
        """The rows of which a part lies in a block."""
        begin = number * BLOCK_BYTES
        return range(begin // self.row_bytes, -(-(begin + BLOCK_BYTES) // self.row_bytes))

    def _compare(self, number: int) -> str:
        """What is wrong with a block, "" for nothing."""
        try:
            data = os.pread(self._descriptor, BLOCK_BYTES, number * BLOCK_BYTES)
        except OSError as error:
            return error.strerror or "cannot be read"
        expected = self.digests[number * DIGEST_DIGITS : (number + 1) * DIGEST_DIGITS]
        return "" if xxhash.xxh3_64_hexdigest(data) == expected else "its checksum is wrong"

    def __getstate__(self) -> dict[str, Any]:
        return {"file": self.file, "digests": self.digests, "row_bytes": self.row_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

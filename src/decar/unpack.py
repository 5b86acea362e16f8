"""Zip and tar archives, unpacked by one rule: an archive is data from the internet.

Only plain files and folders inside the destination are written; links, devices, absolute paths and `..` are refused.
Sizes are counted while unpacking, because those that an archive states may be wrong. A file is written beside its
destination and renamed, so that a killed process leaves no half file under a final name.

`filter="data"` of `tarfile` is not used: Python 3.10 has it from 3.10.12 only, it sets no limits, and zip has nothing
like it. Members are read one by one and written here, so permissions, owners and links never reach the disk.
"""

import bz2
import contextlib
import gzip
import lzma
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import IO, Any, cast

from decar.errors import CorpusError, one_line

_BLOCK = 1 << 20
_PART = ".unpacking"  # without a suffix: no reader of a corpus takes it for a clip
_SMALL = 1 << 20  # bytes; below, the ratio means nothing: an empty tar compresses 85-fold
_BY_HAND = "if you trust it, unpack it by hand"
_DAMAGES = (  # what zipfile, tarfile and the decompressors raise on damaged bytes
    OSError, EOFError, ValueError, RuntimeError, LookupError, ArithmeticError, zipfile.BadZipFile, tarfile.TarError,
    zlib.error, lzma.LZMAError, struct.error,
)  # fmt: skip
_TARS: dict[bytes, Callable[[IO[bytes]], Any]] = {  # how a tar is compressed, by its first bytes
    b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open,
}  # fmt: skip
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
Member = tuple[str, IO[bytes] | None]  # its name and content; None for a folder


class _LimitError(Exception):
    """More bytes than an archive may unpack to."""


class DamagedError(CorpusError):
    """An archive is not what was published: cut, changed, or another kind of file."""


class UnwritableError(CorpusError):
    """A file cannot be written; the cause is the system's error."""


@dataclass(frozen=True)
class Bounds:
    """Limits of one unpacked archive; the largest known one (NSynth) has 289,205 members and 37 GB, twofold compressed.

    Attributes:
        size: Bytes in all.
        members: Files and folders.
        ratio: Bytes in all over bytes of the archive.
    """

    size: int = 200 * 10**9
    members: int = 1_000_000
    ratio: int = 100

    def limit(self, file: Path) -> int:
        """Bytes that `file` may unpack to."""
        return min(self.size, max(_SMALL, self.ratio * file.stat().st_size))


BOUNDS = Bounds()


@contextlib.contextmanager
def saving(path: Path) -> Iterator[None]:
    """Report that `path` cannot be written; used around writes alone, so that no other OSError is taken for one.

    Raises:
        UnwritableError: A write in the block failed.
    """
    try:
        yield
    except OSError as error:
        raise UnwritableError(
            f"{error.filename or path}: cannot be written ({error.strerror or error}); free some space or choose "
            "another folder, then run the same command again: it goes on from here"
        ) from error


def is_archive(path: Path) -> bool:
    """Whether there is a file of this path, and it is an archive by its name."""
    return path.name.lower().endswith(ARCHIVES) and path.is_file()


def unpack(file: Path, folder: Path, bounds: Bounds) -> None:
    """Write the files of a zip or tar archive, which may be compressed, under `folder`, over those of the same name.

    Raises:
        DamagedError: The archive is cut or damaged, empty, or no archive.
        CorpusError: As `write_members`.
    """
    kind = _zip_members if _head(file, 2) == b"PK" else _tar_members
    write_members(file, kind(file, bounds.limit(file)), folder, bounds)


def write_members(file: Path, members: Iterable[Member], folder: Path, bounds: Bounds) -> None:
    """Write what is in a file under a folder.

    Args:
        file: Where the members come from.
        members: They; what is raised while one is read says that `file` is damaged.
        folder: Where to.
        bounds: Limits of all of them together.

    Raises:
        DamagedError: The archive is cut or damaged, empty, or no archive.
        CorpusError: A member is refused, a bound is exceeded, or a file cannot be written. The members before it have
            been written.
    """
    limit, count, size = bounds.limit(file), 0, 0
    try:
        for count, (name, content) in enumerate(members, 1):
            if count > bounds.members:
                raise CorpusError(f"{file}: has more than {bounds.members:,} members; {_BY_HAND}")
            target = folder.joinpath(*_inside(name, file))
            if content is None:
                with saving(target):
                    target.mkdir(parents=True, exist_ok=True)
            else:
                size += _write(content, target, limit - size)
    except _LimitError as error:
        raise CorpusError(
            f"{file}: refused, it unpacks to more than {limit:,} bytes, and has {file.stat().st_size:,}; {_BY_HAND}"
        ) from error
    except _DAMAGES as error:
        raise DamagedError(f"{file}: damaged or not an archive ({one_line(error)})") from error
    if not count:
        raise DamagedError(f"{file}: the archive is empty")


def _head(file: Path, size: int) -> bytes:
    with file.open("rb") as source:
        return source.read(size)


def _inside(name: str, file: Path) -> tuple[str, ...]:
    """The parts of a member's name below the destination, by the rules of POSIX and of Windows."""
    path = PureWindowsPath(name)  # takes both separators, and knows drives
    if path.anchor or ".." in path.parts or "\0" in name:
        raise CorpusError(f"{file}: refused, its member {name!r} leads out of the folder; delete the archive")
    return path.parts


def _write(content: IO[bytes], target: Path, room: int) -> int:
    """Write one member, whole or not at all; returns its size."""
    part, size = target.with_name(_PART), 0
    with saving(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        output = part.open("wb")
    try:
        with output:
            while block := content.read(_BLOCK):
                size += len(block)
                if size > room:
                    raise _LimitError
                with saving(target):
                    output.write(block)
                    output.flush()
        with saving(target):
            os.replace(part, target)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
    return size


def _zip_members(file: Path, _limit: int) -> Iterator[Member]:
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            name, kind = member.orig_filename, stat.S_IFMT(member.external_attr >> 16)
            if member.flag_bits & 1:
                raise CorpusError(f"{file}: its member {name!r} is encrypted; unpack it by hand with the password")
            if kind and not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
                raise CorpusError(f"{file}: refused, its member {name!r} is neither a file nor a folder; {_BY_HAND}")
            if name.endswith(("/", "\\")) or stat.S_ISDIR(kind):
                yield name, None
            else:
                with archive.open(member) as content:
                    yield name, content


def _tar_members(file: Path, limit: int) -> Iterator[Member]:
    opened = _TARS.get(_head(file, 2), contextlib.nullcontext)
    with file.open("rb") as plain, opened(plain) as content:
        stream = _Forward(cast(IO[bytes], content), limit)
        archive = tarfile.TarFile(fileobj=stream)  # type: ignore[arg-type]
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # they would all be kept
            if member.isdir():
                yield member.name, None
            elif member.isreg():
                yield member.name, archive.extractfile(member)
            else:
                raise CorpusError(
                    f"{file}: refused, its member {member.name!r} is neither a file nor a folder; {_BY_HAND}"
                )
        stream.seek(archive.offset)  # tarfile takes a damaged header for the end
        if any(stream.read(tarfile.BLOCKSIZE)):
            raise tarfile.ReadError(f"no member begins at byte {archive.offset:,}")
        while stream.read(_BLOCK):  # the checksum of what is compressed stands at its end
            pass


class _Forward:
    """The bytes of a tar for tarfile; no header, however damaged, makes it fill the memory or run for ever."""

    def __init__(self, source: IO[bytes], limit: int) -> None:
        self._source, self._limit = source, limit

    def tell(self) -> int:
        return self._source.tell()

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _BLOCK:
            raise ValueError(f"a header of {size:,} bytes")
        block = self._source.read(size)
        self._check(self.tell())
        return block

    def seek(self, position: int) -> None:
        if position < self.tell() - tarfile.BLOCKSIZE:
            raise ValueError(f"byte {self.tell():,} leads back to {position:,}")
        self._check(position)  # before gzip unpacks all that lies between
        self._source.seek(position)

    def _check(self, position: int) -> None:
        if position > self._limit:
            raise _LimitError

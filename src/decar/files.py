"""Files that are there whole or not at all, and locks that the system frees when their holder dies."""

import contextlib
import errno
import logging
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

LOCK_WAIT = 10.0  # seconds: a job that was just stopped may still be writing its checkpoint
_BUSY = (errno.EAGAIN, errno.EACCES)

_held: set[int] = set()  # descriptors of the locks of this process


@contextlib.contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """A path to write to, in the same folder; it becomes `path` when the block ends, and is deleted when it raises.

    Whoever reads `path` meanwhile, or after a kill, finds the old file or none, never a part of the new one.

    Raises:
        OSError: The folder cannot be made or written to, or the disk is full.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=target.suffix)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        part.chmod(0o644)  # mkstemp makes it private
        os.replace(part, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink()
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(target)  # a write to an open file does not know its name
        raise


@contextlib.contextmanager
def locked(path: str | Path, wait: float | None = None) -> Iterator[None]:
    """Hold the lock file `path`; it is deleted when the block ends.

    The kernel frees the lock when this process dies, also by SIGKILL: child processes do not inherit it. Where the file
    system has no locks, a warning is logged and the block runs without one.

    Args:
        path: The lock file. Its folder exists.
        wait: Seconds to wait for another holder; `LOCK_WAIT` when None.

    Raises:
        BlockingIOError: Another process holds it; `strerror` says which one on which host.
        OSError: The file cannot be created.
    """
    descriptor = _acquire(Path(path), LOCK_WAIT if wait is None else wait)
    _held.add(descriptor)
    try:
        yield
    finally:
        _held.discard(descriptor)
        with contextlib.suppress(OSError):
            os.unlink(path)  # while the lock is held: see `_acquire`
        os.close(descriptor)


def _acquire(path: Path, wait: float) -> int:
    """An open descriptor that holds the lock."""
    ends = time.monotonic() + wait
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if _lock(descriptor, path) and _is_at(descriptor, path):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
                return descriptor
            if time.monotonic() >= ends:
                holder = os.pread(descriptor, 200, 0).decode(errors="replace")
                told = "".join(c for c in holder if c.isprintable()) or "another process"
                raise BlockingIOError(errno.EAGAIN, f"in use by {told}", str(path))
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        time.sleep(min(0.1, wait))


def _lock(descriptor: int, path: Path) -> bool:
    """Try once; whether this process now holds it, or nobody can."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _BUSY:
            return False
        log.warning("%s: this file system has no locks (%s): let no other job write here", path.parent, error.strerror)
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the file is still the one at `path`: its last holder may have deleted it after we opened it."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _forget() -> None:
    """In a forked process: close the descriptors, or it would keep the locks of a dead parent."""
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)

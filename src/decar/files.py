"""Files that are there whole or not at all, locks that are freed when their holder dies, what lies in a folder."""

from __future__ import annotations

import contextlib
import csv
import errno
import logging
import os
import re
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

NAMED_IN_LOG = 20  # files that a scan leaves out; more are counted
LOCK_WAIT = 10.0  # seconds: a job that was just stopped may still be writing its checkpoint
_BUSY = (errno.EAGAIN, errno.EACCES)

_held: set[int] = set()  # descriptors of the locks of this process

ADVICE = {
    errno.ENOSPC: "the disk is full, make room",
    errno.EDQUOT: "your disk quota is used up, make room",
    errno.EFBIG: "the file is larger than the disk or `ulimit -f` allows, raise the limit or write elsewhere",
    errno.EROFS: "the disk is read-only, write to another folder",
    errno.EACCES: "you have no permission to write there, change it or write to another folder",
    errno.EPERM: "you have no permission to write there, change it or write to another folder",
}


def cache_home() -> str:
    """Where decar keeps what it can make again: `DECAR_CACHE`, else `decar` in the user's cache folder.

    A user without a home, as in many containers, gets a folder of their own among the temporary files.
    """
    given, base = os.environ.get("DECAR_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if given or base:
        return given or str(Path(str(base)) / "decar")
    try:
        home = Path.home()
    except RuntimeError:  # no HOME, and the user is in no list of users
        home = Path()
    if home in (Path(), Path("/")) or not home.is_dir():  # an empty HOME means "/"
        return str(Path(tempfile.gettempdir()) / f"decar-{os.getuid() if hasattr(os, 'getuid') else 'cache'}")
    return str(home / ".cache" / "decar")


@contextlib.contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """A path to write to, in the same folder; it replaces `path` when the block ends, and is deleted when it raises.

    Readers of `path`, also after a kill or a power cut, find the old file or the new one, never a part.

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
        sync(part)
        os.replace(part, target)
        with contextlib.suppress(OSError):  # some file systems cannot sync a folder
            sync(target.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink()
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(target)  # a write to an open file does not know its name
        raise


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """An empty folder to write files into, beside `path`; it becomes `path` when the block ends, as `whole` does.

    Raises:
        OSError: `path` is a folder with something in it or a file, cannot be made, or the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield part
        part.chmod(0o755)  # mkdtemp makes it private
        for inside in (*part.iterdir(), part):
            sync(inside)
        os.rename(part, path)
        with contextlib.suppress(OSError):
            sync(path.parent)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def sync(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk.

    Raises:
        OSError: The disk is full or gone.
    """
    if os.name != "posix" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # Windows syncs no file open for reading
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
                named = "".join(c for c in holder if c.isprintable()) or "another process"
                raise BlockingIOError(errno.EAGAIN, f"in use by {named}", str(path))
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


def advice(error: BaseException) -> str:
    """What to do about a failed write, by the error number: only a full disk is called full.

    >>> advice(OSError(errno.EROFS, "Read-only file system"))
    'the disk is read-only, write to another folder'
    """
    link: BaseException | None = error
    while link is not None:  # torch and safetensors wrap the system's error, or keep its number only in the text
        written = re.search(r"(?:os error |Errno )(\d+)", str(link))
        code = getattr(link, "errno", None) or (int(written[1]) if written else None)
        if code is not None:
            return ADVICE.get(code, "check the disk and the folder")
        link = link.__cause__ or link.__context__
    return "check the disk and the folder"


def write_csv(table: pd.DataFrame, path: Path, *, index: bool = False) -> None:
    r"""Write a table as CSV in UTF-8; each text reads back as it is.

    Text with a carriage return is quoted, which pandas leaves out. What is not valid Unicode is written as `\udcff`.

    Raises:
        OSError: The file cannot be written.
    """
    table = table.reset_index() if index else table
    cells = (cell for name in table.columns for cell in (name, *table[name]))
    returns = any(isinstance(cell, str) and "\r" in cell for cell in cells)
    if returns:
        table.to_csv(path, index=False, quoting=csv.QUOTE_NONNUMERIC, errors="backslashreplace")
    else:
        table.to_csv(path, index=False, errors="backslashreplace")


def write_table(table: pd.DataFrame, file: Path | None, *, index: bool = False) -> None:
    """Write a table as Parquet if the name ends in .parquet or .pq, else as CSV; without a file do nothing.

    Raises:
        OSError: It cannot be written.
    """
    if file is None:
        return
    with whole(file) as part:
        if file.suffix.lower() in (".parquet", ".pq"):
            table.to_parquet(part, index=index)
        else:
            write_csv(table, part, index=index)


def find_files(folder: Path, *, recursive: bool = True, hidden: bool = True) -> list[str]:
    """Paths below `folder` of its files, with forward slashes, a folder's own files before those of its folders.

    Links to folders are followed, each real folder once, so that a loop of links ends. A link whose target is missing
    counts as a file: whoever opens it reports that. Everything else that is no file is left out with a warning each,
    and so is a folder that cannot be read: links that lead to themselves or into private folders, named pipes, sockets,
    devices, folders that vanish during the scan.

    Args:
        folder: Where to look.
        recursive: Whether to look into its folders.
        hidden: Whether to list files and folders whose names begin with a dot.
    """
    found: list[str] = []
    left_out: list[str] = []
    seen: dict[tuple[int, int], str] = {}
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        try:
            entries = _entries(folder / prefix, hidden, seen)
        except OSError as error:
            left_out.append(f"the folder {folder / prefix} ({error.strerror})")
            continue
        faults = {entry.name: fault(entry) for entry in entries}
        left_out += [f"{folder / prefix / name} ({reason})" for name, reason in faults.items() if reason]
        usable = [entry for entry in entries if not faults[entry.name]]
        found += [prefix + entry.name for entry in usable if not entry.is_dir()]
        if recursive:
            waiting += [f"{prefix}{entry.name}/" for entry in reversed(usable) if entry.is_dir()]
    warn_left_out(left_out)
    return found


def _entries(folder: Path, hidden: bool, seen: dict[tuple[int, int], str]) -> list[os.DirEntry[str]]:
    """What lies in a folder, sorted by name.

    Raises:
        OSError: It cannot be read, or has been listed under another name.
    """
    status = folder.stat()
    first = seen.setdefault((status.st_dev, status.st_ino), str(folder))
    if first != str(folder):
        raise OSError(0, f"the same folder as {first}")
    with os.scandir(folder) as entries:
        return sorted((e for e in entries if hidden or not e.name.startswith(".")), key=lambda entry: entry.name)


def fault(entry: os.DirEntry[str]) -> str:
    """Why an entry of a folder is neither a file nor a folder; "" for both, and for a link without a target."""
    try:
        if entry.is_dir() or entry.is_file():
            return ""
        return not_a_file(entry.path)
    except OSError as error:
        return error.strerror or str(error)


def not_a_file(path: str) -> str:
    """Why a path is no file, "" where it is one or there is nothing.

    Raises:
        OSError: It cannot be looked at.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return ""
    if stat.S_ISREG(mode):
        return ""
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
    return f"{kinds.get(stat.S_IFMT(mode), 'a device')}, not a file"


def warn_left_out(what: Sequence[str]) -> None:
    """A warning for each of the first files that are left out, and one that counts the others."""
    for name in what[:NAMED_IN_LOG]:
        log.warning("left out: %s", name)
    if len(what) > NAMED_IN_LOG:
        log.warning("left out: %d more", len(what) - NAMED_IN_LOG)

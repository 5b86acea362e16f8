"""Which sounds are these? A digest of each file, remembered until the file system says that the file has changed.

Everything computed from sounds (log-mel stores, embeddings, judgements, checkpoints) is keyed on what is made here.
Size and modification time alone do not identify a sound: `cp -p`, `rsync -t` and `tar` set both to those of another
file. Four rules:

1. *Identity is content.* A file's digest covers its size and its content: all of it up to `WHOLE_BYTES`, beyond that
   `BLOCKS` blocks spread evenly. The fingerprint of a manifest is made of digests, stretches and paths as the source
   writes them, so a copy of a data set has the fingerprint of the original, on another machine too. The modification
   time of a file that was not read whole enters as well: an edit between two blocks changes nothing else.
2. *Unchanged is what `stat` says.* A digest is remembered in `CACHE/identity/` with size, mtime, ctime and inode, and
   believed while all four are the same; a program cannot set ctime. Otherwise the content is read again. So on a file
   system with unstable inodes or ctimes (network, FUSE, overlay) each open reads blocks again, but nothing is rebuilt.
   A file that changed within `FRESH_NS` before it was read is read again next time: clocks of file systems are coarse.
3. *A few files are read at every open*, chosen at random, in case a file system does not keep ctime. If one of them
   differs, all are read again.
4. *Of a job of several processes the first one looks*, at every start and at every file. `stat` is never replaced by
   what is remembered, not even of folders: their times stay when a file in them is overwritten. The others are given
   the result and open the store of that name; one that has to build it compares its own files.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import stat
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from decar.digests import ARRAY_SUFFIX, load_array, save_array
from decar.files import whole

log = logging.getLogger(__name__)

BLOCKS = 4
BLOCK_BYTES = 2**14
WHOLE_BYTES = BLOCKS * BLOCK_BYTES
FRESH_NS = 2 * 10**9  # FAT has steps of 2 s, NFS and HFS+ of 1 s
SPOT_CHECKS = 16
THREADS = 8  # of reading: the waiting is for the disk
CHUNK = 256  # files of one task of a thread

RECORD = np.dtype([("size", "<i8"), ("mtime", "<i8"), ("ctime", "<i8"), ("inode", "<i8"), ("digest", "<u8", 2)])
STAT = ("size", "mtime", "ctime", "inode")
MISSING = (-1, 0, 0, 0)
Records = npt.NDArray[np.void]


def identify(
    files: Sequence[str],
    cache_dir: str | os.PathLike[str] | None = None,
    *,
    known_elsewhere: Callable[[], Records | None] = lambda: None,
) -> Records:
    """Size, times (ns) and digest of each file, `(N,)` of `RECORD`; a missing file has the size -1.

    Args:
        files: Absolute paths, each once.
        cache_dir: Where digests are remembered, in its folder `identity`; None: every file is read.
        known_elsewhere: Called where these files are not remembered: what is remembered of them as part of others.
    """
    now = time.time_ns()
    found = _stats(files)
    memory = None if cache_dir is None else _memory(files, cache_dir)
    own = None if memory is None else _recall(memory, len(files))
    known = known_elsewhere() if own is None else own
    unread = found["size"] >= 0 if known is None else _changed(files, found, known)
    if known is not None:
        found["digest"] = known["digest"]
    _read(files, found, np.flatnonzero(unread))
    if known is not None:
        _tell(found, known, unread)
    if memory is not None and (own is None or unread.any()):
        fresh = np.maximum(found["ctime"], found["mtime"]) > now - FRESH_NS
        kept = found.copy()
        kept["ctime"][fresh] = -1
        _remember(memory, kept)
    return found


def remembered(files: Sequence[str], cache_dir: str | os.PathLike[str]) -> Records | None:
    """What `identify` last found of these files, without a look at them; None where it is not known."""
    return _recall(_memory(files, cache_dir), len(files))


def _memory(files: Sequence[str], cache_dir: str | os.PathLike[str]) -> Path:
    return Path(cache_dir).expanduser() / "identity" / f"{_key(files)}{ARRAY_SUFFIX}"


def _stats(files: Sequence[str]) -> Records:
    """What `stat` says of each file, without a digest."""
    numbers = np.fromiter(chain.from_iterable(map(_stat, files)), np.int64, 4 * len(files)).reshape(-1, 4)
    records = np.zeros(len(files), RECORD)
    for column, name in enumerate(STAT):
        records[name] = numbers[:, column]
    return records


def _stat(file: str) -> tuple[int, int, int, int]:
    try:
        info = os.stat(file)
    except (OSError, ValueError):
        return MISSING
    return info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino & (2**63 - 1)


def _changed(files: Sequence[str], found: Records, known: Records) -> npt.NDArray[np.bool_]:
    """Whether each file has to be read."""
    present = found["size"] >= 0
    same = present & np.logical_and.reduce([found[name] == known[name] for name in STAT])
    believed = np.flatnonzero(same)
    spots = np.array(random.sample(range(len(believed)), min(SPOT_CHECKS, len(believed))), np.int64)
    checked = found[believed[spots]]
    _read([files[i] for i in believed[spots]], checked, np.arange(len(spots)))
    if (checked["digest"] != known["digest"][believed[spots]]).any():
        log.warning("this file system does not say when a file changes (ctime): the content of all files is read")
        return np.asarray(present)
    return np.asarray(present & ~same)


def _tell(found: Records, known: Records, read: npt.NDArray[np.bool_]) -> None:
    """Say what came of reading files again."""
    again = read & (found["size"] == known["size"]) & (known["ctime"] != -1)
    other = (found["digest"] != known["digest"]).any(axis=1)
    if n := int((again & ~other).sum()):
        log.info("%d files have another inode or time of change, but the same content", n)
    if n := int((again & other & (found["mtime"] == known["mtime"])).sum()):
        log.warning("%d files have other content than before, at equal size and modification time", n)


def _read(files: Sequence[str], records: Records, rows: npt.NDArray[np.int64]) -> None:
    """Fill in the digests of some rows."""
    if not len(rows):
        return
    chunks = [rows[i : i + CHUNK] for i in range(0, len(rows), CHUNK)]
    with ThreadPoolExecutor(min(THREADS, len(chunks)), thread_name_prefix="identity") as pool:
        read = pool.map(lambda chunk: b"".join(_digest(files[i], int(records["size"][i])) for i in chunk), chunks)
        records["digest"][rows] = np.frombuffer(b"".join(read), "<u8").reshape(-1, 2)


def _digest(file: str, size: int) -> bytes:
    """16 bytes over the size and the content, or blocks of it; a file that cannot be read has a digest as well."""
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    starts = (0,) if size <= WHOLE_BYTES else [i * (size - BLOCK_BYTES) // (BLOCKS - 1) for i in range(BLOCKS)]
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):  # reading a named pipe would wait for ever
            return digest.digest()
        with open(file, "rb", buffering=0) as data:
            for start in starts:
                data.seek(start)
                digest.update(data.read(WHOLE_BYTES if len(starts) == 1 else BLOCK_BYTES))
    except OSError as error:
        digest.update(f"unreadable {error.errno}".encode())
    return digest.digest()


def _key(files: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(files).encode("utf-8", "surrogatepass")).hexdigest()


def _recall(memory: Path, n: int) -> Records | None:
    """The remembered records, None where there are none that fit."""
    try:
        records = load_array(memory)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("%s is damaged (%s): the content of all files is read again", memory, error)
        return None
    return records if records.dtype == RECORD and records.shape == (n,) else None


def _remember(memory: Path, records: Records) -> None:
    """Keep records; a cache that cannot be written costs reading the files again."""
    try:
        with whole(memory) as part:
            save_array(part, records)
    except OSError as error:
        log.debug("digests are not remembered: %s", error)

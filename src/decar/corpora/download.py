"""The archives of a corpus from their official addresses: fetched whole, checked, unpacked.

pooch (1.9), the usual library, is not used: after a cut it starts again at the first byte, where archives have
gigabytes, and it unpacks without limits. Under `ROOT/archives`, `NAME` is a whole archive, `.NAME.part` the beginning
of one, and `.NAME.tag` the version of it that the server sent; `.NAME.unpacking` and `.NAME.unpacked` are marks.
"""

import contextlib
import hashlib
import http.client
import logging
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import filelock

from decar.corpora.base import Archive, Corpus
from decar.corpora.unpack import BOUNDS, Bounds, DamagedError, saving, unpack
from decar.errors import CorpusError, one_line
from decar.files import whole

log = logging.getLogger(__name__)
_BLOCK = 1 << 20
_QUIET = 15.0  # s between two lines of progress
_OUT_OF_RANGE = 416
_PASSING = (408, 425, 429, _OUT_OF_RANGE)  # statuses below 500 after which another try may succeed
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")
_ARCHIVES = (".zip", ".gz", ".tgz", ".tar")


class _UnreachableError(Exception):
    """An address did not send all of its file.

    Attributes:
        final: Whether another request is of no use.
        useless: Whether the part that is there cannot be continued.
    """

    def __init__(self, reason: str, *, final: bool = False, useless: bool = False) -> None:
        super().__init__(reason)
        self.final, self.useless = final, useless


def download(
    corpus: Corpus,
    root: str | Path,
    *,
    bounds: Bounds = BOUNDS,
    timeout: float = 30.0,
    tries: int = 7,
    wait: float = 1.0,
) -> None:
    """Fetch and unpack what is not there yet; a second call goes on where the first was stopped.

    Args:
        corpus: One of `CORPORA`.
        root: The folder to unpack in; archives stay in its folder `archives`.
        bounds: Limits of an archive.
        timeout: Longest silence of a server, s.
        tries: Requests in a row that bring nothing new before an address is given up.
        wait: Pause after the first of them, s; it doubles each time.

    Raises:
        CorpusError: The corpus cannot be fetched without asking, an address does not answer, a file is not the one that
            was published, an archive is refused (the others have been unpacked), or a file cannot be written.
    """
    if not corpus.archives:
        raise CorpusError(f"{corpus.title}: cannot be downloaded from here: {corpus.by_hand or corpus.page}")
    root = Path(root).expanduser()
    folder, failed = root / "archives", []
    with _alone(folder):
        todo = [archive for archive in corpus.archives if not _beside(folder / archive.file, "unpacked").is_file()]
        for archive in todo:
            try:
                _obtain(archive, folder / archive.file, corpus.page, timeout, tries, wait)
            except CorpusError as error:
                raise CorpusError(f"{corpus.title}: {error}") from error
        for archive in todo:
            try:
                _unpack(folder / archive.file, root / archive.folder, bounds)
            except CorpusError as error:
                failed.append(error)
    if failed:
        more = f" (and {len(failed) - 1} more archives)" if failed[1:] else ""
        raise CorpusError(f"{corpus.title}: {failed[0]}{more}") from failed[0]


def check_finished(root: Path, title: str) -> None:
    """Raise a CorpusError where a download was stopped: clips would be missing, in some corpora without a trace."""
    for mark in sorted((root / "archives").glob(".*")):
        if mark.suffix in (".part", ".unpacking"):
            done = "downloaded" if mark.suffix == ".part" else "unpacked"
            raise CorpusError(
                f"{title}: {mark.stem[1:]} is only partly {done}; run again with --download to go on, or delete "
                f"{mark} if you have {done} it by hand"
            )


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Make the folder and hold its lock, which the system frees when the process dies."""
    lock = filelock.FileLock(folder / ".lock", timeout=0)
    with saving(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except filelock.Timeout as error:
            raise CorpusError(f"{folder}: another process downloads to this folder; wait for it") from error
    try:
        yield
    finally:
        lock.release()


def _beside(file: Path, kind: str) -> Path:
    return file.with_name(f".{file.name}.{kind}")


def _obtain(archive: Archive, file: Path, page: str, timeout: float, tries: int, wait: float) -> None:
    """Have the whole `file` with its published checksum, fetched or as it was put there."""
    if file.is_file():
        _check(archive, file, f"delete {file} and run again")
        return
    by_hand = f"run again to go on, or save it by hand as {file}, see {page}"
    part = _beside(file, "part")
    log.info("downloading %s", archive.url)
    try:
        _fetch(archive.url, part, timeout, tries, wait)
        _check(archive, part, by_hand)
    except _UnreachableError as error:
        raise CorpusError(f"{archive.url} cannot be downloaded: {error}; {by_hand}") from error
    with saving(file):
        os.replace(part, file)
        _tag(part).unlink(missing_ok=True)


def _check(archive: Archive, file: Path, cure: str) -> None:
    """Raise a CorpusError, and delete a part, unless the file has the published checksum."""
    kind, _, wanted = archive.checksum.partition(":")
    if not wanted:
        return
    digest = hashlib.new(kind)
    with file.open("rb") as source:
        while block := source.read(_BLOCK):
            digest.update(block)
    if digest.hexdigest() != wanted:
        if file.suffix == ".part":
            file.unlink()
            _tag(file).unlink(missing_ok=True)
        raise CorpusError(f"{archive.url}: the file has the {kind} {digest.hexdigest()}, published is {wanted}; {cure}")


def _fetch(url: str, part: Path, timeout: float, tries: int, wait: float) -> None:
    """Fill `part` with the whole file, request by request.

    Raises:
        _UnreachableError: There is no such file, or `tries` requests in a row brought nothing new.
        CorpusError: The part cannot be written.
    """
    reached, failures = _size(part), 0
    while True:
        try:
            return _receive(url, part, timeout)
        except _UnreachableError as error:
            if error.useless:
                part.unlink(missing_ok=True)
            failures = 0 if _size(part) > reached else failures + 1
            reached = max(reached, _size(part))
            if error.final or failures >= tries:
                raise
            pause = wait * 2**failures / 2
            log.warning("%s: %s; next try in %.0f s", url, error, pause)
            time.sleep(pause)


def _tag(part: Path) -> Path:
    return part.with_suffix(".tag")


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def _receive(url: str, part: Path, timeout: float) -> None:
    """One request: what `part` lacks of the version that it began with, or all of another version.

    The last byte is requested again, so that a part that is whole already needs no rule of its own.
    """
    tag = _tag(part)
    version = " ".join(tag.read_text("latin-1").split()) if tag.is_file() else ""
    start = max(0, _size(part) - 1) if version else 0
    headers = {"User-Agent": "decar"} | ({"Range": f"bytes={start}-", "If-Range": version} if start else {})
    request = urllib.request.Request(url, headers=headers)
    with _answering(), urllib.request.urlopen(request, timeout=timeout) as source:
        start, total = _extent(source, start, version)
        with saving(part):
            if not start:
                part.unlink(missing_ok=True)
                tag.write_text(_version(source), "latin-1")
            target = part.open("r+b" if start else "wb")
            target.seek(start)
        with target:
            _copy(source, target, part, total)
    if total is not None and _size(part) != total:
        raise _UnreachableError(f"the connection ended after {_size(part):,} of {total:,} bytes")
    with part.open("rb") as written:
        if written.read(256).lstrip().lower().startswith((b"<!doctype html", b"<html")):
            raise _UnreachableError("a web page came instead of the file", final=True, useless=True)


@contextlib.contextmanager
def _answering() -> Iterator[None]:
    """Turn what urllib raises into one error."""
    try:
        yield
    except urllib.error.HTTPError as error:
        final, useless = error.code < 500 and error.code not in _PASSING, error.code == _OUT_OF_RANGE
        raise _UnreachableError(f"the server answers with status {error.code}", final=final, useless=useless) from error
    except (OSError, http.client.HTTPException) as error:
        raise _UnreachableError(one_line(error)) from error


def _version(source: Any) -> str:
    """The validator of a file for a range request (RFC 9110, 13.1.5); "" for none."""
    tag = source.headers.get("ETag", "")
    return str(tag if tag.startswith('"') else source.headers.get("Last-Modified", ""))  # W/"…" is not exact


def _extent(source: Any, start: int, version: str) -> tuple[int, int | None]:
    """The byte that an answer begins with, and the size of the whole file; None where its end is marked (chunked)."""
    if source.status == http.HTTPStatus.PARTIAL_CONTENT:
        found = _RANGE.fullmatch(source.headers.get("Content-Range", ""))
        if not found or int(found[1]) != start or _version(source) != version:
            raise _UnreachableError("the server sent another part than was requested", useless=True)
        return start, int(found[2])
    length = source.headers.get("Content-Length", "")
    if length.isdecimal():
        return 0, int(length)
    if not getattr(source, "chunked", False):
        raise _UnreachableError("the server does not say how long the file is, so a cut would not show", final=True)
    return 0, None


def _copy(source: Any, target: BinaryIO, part: Path, total: int | None) -> None:
    """Write what arrives at once, so that a connection that is cut or stalls loses nothing."""
    logged = time.monotonic()
    while block := source.read1(_BLOCK):
        with saving(part):
            target.write(block)
            target.flush()
        if time.monotonic() > logged + _QUIET:
            logged = time.monotonic()
            log.info("%s: %d%s MB", part.stem[1:], target.tell() // 10**6, f" of {total // 10**6}" if total else "")


def _unpack(file: Path, folder: Path, bounds: Bounds) -> None:
    """Unpack an archive, copy a table, leave the pieces of a split archive; then mark it."""
    if file.with_suffix(".z01").is_file() and file.suffix == ".zip":
        raise CorpusError(
            f"{file}: in several pieces, which Python cannot read; join them with `zip -s 0 {file} --out whole.zip`, "
            f"unpack whole.zip into {folder} and run again without --download"
        )
    begun = _beside(file, "unpacking")
    with saving(begun):
        folder.mkdir(parents=True, exist_ok=True)
        begun.touch()
    try:
        if file.suffix in _ARCHIVES:
            unpack(file, folder, bounds)
        elif file.suffix == ".csv":
            with saving(folder / file.name), whole(folder / file.name) as part:
                shutil.copyfile(file, part)
    except DamagedError as error:
        with saving(file):
            os.replace(file, file.with_name(f"{file.name}.damaged"))
        raise CorpusError(f"{error}; renamed to end in .damaged: run again to fetch it anew") from error
    with saving(begun):
        os.replace(begun, _beside(file, "unpacked"))

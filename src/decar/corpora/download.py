"""The archives of a corpus from their official addresses: fetched whole, checked, unpacked.

Under `ROOT/archives`, `NAME` is a whole archive, `.NAME.part` the beginning of one, and `.NAME.tag` the version of it
that the server sent; `.NAME.unpacking` and `.NAME.unpacked` are marks.
"""

import contextlib
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import filelock

from decar.corpora.base import Archive, Corpus
from decar.errors import CorpusError
from decar.fetch import UnreachableError, fetch, tag_of
from decar.files import whole
from decar.unpack import BOUNDS, Bounds, DamagedError, saving, unpack

log = logging.getLogger(__name__)
_BLOCK = 1 << 20
_ARCHIVES = (".zip", ".gz", ".tgz", ".tar")


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
        fetch(archive.url, part, timeout=timeout, tries=tries, wait=wait)
        _check(archive, part, by_hand)
    except UnreachableError as error:
        raise CorpusError(f"{archive.url} cannot be downloaded: {error}; {by_hand}") from error
    with saving(file):
        os.replace(part, file)
        tag_of(part).unlink(missing_ok=True)


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
            tag_of(file).unlink(missing_ok=True)
        raise CorpusError(f"{archive.url}: the file has the {kind} {digest.hexdigest()}, published is {wanted}; {cure}")


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

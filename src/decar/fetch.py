"""A file from an http(s) address: after a cut it goes on where it stopped, and it is whole or not there.

pooch (1.9), the usual library, is not used: after a cut it starts again at the first byte, where archives have
gigabytes. Beside `.NAME.part`, the beginning of a file, `.NAME.tag` holds the version of it that the server sent.
"""

import contextlib
import http.client
import logging
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from decar.errors import one_line
from decar.unpack import saving

log = logging.getLogger(__name__)
_BLOCK = 1 << 20
_QUIET = 15.0  # s between two lines of progress
_OUT_OF_RANGE = 416
_PASSING = (408, 425, 429, _OUT_OF_RANGE)  # statuses below 500 after which another try may succeed
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")


class UnreachableError(Exception):
    """An address did not send all of its file.

    Attributes:
        final: Whether another request is of no use.
        useless: Whether the part that is there cannot be continued.
    """

    def __init__(self, reason: str, *, final: bool = False, useless: bool = False) -> None:
        super().__init__(reason)
        self.final, self.useless = final, useless


def fetch(
    url: str, part: Path, *, timeout: float = 30.0, tries: int = 7, wait: float = 1.0, most: int | None = None
) -> None:
    """Fill `part` with the whole file, request by request.

    Args:
        url: http:// or https://.
        part: Where to; what is there already is continued.
        timeout: Longest silence of the server, s.
        tries: Requests in a row that bring nothing new before the address is given up.
        wait: Pause after the first of them, s; it doubles each time.
        most: Bytes that the file may have; None: any number.

    Raises:
        UnreachableError: There is no such file, it is too large, or `tries` requests in a row brought nothing new.
        CorpusError: The part cannot be written.
    """
    reached, failures = _size(part), 0
    while True:
        try:
            return _receive(url, part, timeout, most)
        except UnreachableError as error:
            if error.useless:
                part.unlink(missing_ok=True)
            failures = 0 if _size(part) > reached else failures + 1
            reached = max(reached, _size(part))
            if error.final or failures >= tries:
                raise
            pause = wait * 2**failures / 2
            log.warning("%s: %s; next try in %.0f s", url, error, pause)
            time.sleep(pause)


def tag_of(part: Path) -> Path:
    """The file that says which version of the file `part` is the beginning of."""
    return part.with_suffix(".tag")


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def _receive(url: str, part: Path, timeout: float, most: int | None) -> None:
    """One request: what `part` lacks of the version that it began with, or all of another version.

    The last byte is requested again, so that a part that is whole already needs no rule of its own.
    """
    tag = tag_of(part)
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
            copy(source, target, part, total=total, most=most)
    if total is not None and _size(part) != total:
        raise UnreachableError(f"the connection ended after {_size(part):,} of {total:,} bytes")
    with part.open("rb") as written:
        if written.read(256).lstrip().lower().startswith((b"<!doctype html", b"<html")):
            raise UnreachableError("a web page came instead of the file", final=True, useless=True)


@contextlib.contextmanager
def _answering() -> Iterator[None]:
    """Turn what urllib raises into one error."""
    try:
        yield
    except urllib.error.HTTPError as error:
        final, useless = error.code < 500 and error.code not in _PASSING, error.code == _OUT_OF_RANGE
        raise UnreachableError(f"the server answers with status {error.code}", final=final, useless=useless) from error
    except (OSError, http.client.HTTPException) as error:
        raise UnreachableError(one_line(error)) from error


def _version(source: Any) -> str:
    """The validator of a file for a range request (RFC 9110, 13.1.5); "" for none."""
    tag = source.headers.get("ETag", "")
    return str(tag if tag.startswith('"') else source.headers.get("Last-Modified", ""))  # W/"…" is not exact


def _extent(source: Any, start: int, version: str) -> tuple[int, int | None]:
    """The byte that an answer begins with, and the size of the whole file; None where its end is marked (chunked)."""
    if source.status == http.HTTPStatus.PARTIAL_CONTENT:
        found = _RANGE.fullmatch(source.headers.get("Content-Range", ""))
        if not found or int(found[1]) != start or _version(source) != version:
            raise UnreachableError("the server sent another part than was requested", useless=True)
        return start, int(found[2])
    length = source.headers.get("Content-Length", "")
    if length.isdecimal():
        return 0, int(length)
    if not getattr(source, "chunked", False):
        raise UnreachableError("the server does not say how long the file is, so a cut would not show", final=True)
    return 0, None


def copy(source: Any, target: BinaryIO, part: Path, *, total: int | None = None, most: int | None = None) -> None:
    """Write what arrives at once, so that a connection that is cut or stalls loses nothing.

    Args:
        source: What is read; by `read1`, if it has that.
        target: `part`, opened.
        part: For messages.
        total: Bytes that are expected, for the log.
        most: As of `fetch`.

    Raises:
        UnreachableError: There are more bytes than `most`.
        CorpusError: The part cannot be written.
    """
    read, logged = getattr(source, "read1", source.read), time.monotonic()
    while block := read(_BLOCK):
        if most is not None and target.tell() + len(block) > most:
            raise UnreachableError(f"it has more than {most:,} bytes", final=True, useless=True)
        with saving(part):
            target.write(block)
            target.flush()
        if time.monotonic() > logged + _QUIET:
            logged = time.monotonic()
            log.info("%s: %d%s MB", part.stem[1:], target.tell() // 10**6, f" of {total // 10**6}" if total else "")

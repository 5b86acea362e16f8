"""Sounds at addresses, such as https://example.org/owl.wav, in place of paths: fetched only if the caller asks for it.

A table is data, and may come from anybody: one that names an address makes no request. `fetched`, which `--fetch` of
`decar` calls, keeps the sounds in `CACHE/sources/fetched`. An address whose file is there is not requested again.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from decar.audio.containers import PATIENCE, SOURCES
from decar.audio.parallel import in_order
from decar.audio.progress import progress_bar
from decar.errors import CorpusError, ManifestError, reason_of
from decar.fetch import UnreachableError, copy, fetch, tag_of
from decar.files import cache_home, locked, warn_left_out
from decar.unpack import saving

if TYPE_CHECKING:
    from decar.audio.manifest import Manifest

log = logging.getLogger(__name__)

URL = "url"  # the column of the addresses
HTTP, OTHERS = ("http", "https"), ("s3", "gs", "gcs", "az", "abfs", "hf")  # others by the package `fsspec`
MOST_BYTES = 20 * 10**9  # of a sound
TRIES = 3
THREADS = 8
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_PLAIN = re.compile(r"\w+:/(/(?!\.)[\w.,:;=%+ ~()'!-]{1,200})+", re.ASCII)  # an address that can be a path


def is_address(path: str) -> bool:
    """Whether a path is an address."""
    return "://" in path and _ADDRESS.match(path) is not None


def refuse_addresses(paths: Iterable[str]) -> None:
    """Raise a ManifestError where a path is an address."""
    if address := next(filter(is_address, paths), None):
        raise ManifestError(
            f"{address} is an address, and nothing is fetched because a table names it: pass --fetch (in Python "
            "fetch=True) to decar embed, cluster, predict or suggest; for other commands, download the sounds first"
        )


def fetched(clips: Manifest, *, progress: bool = False) -> Manifest:
    """The clips with the sounds of addresses in the cache, `path` saying where, and the address in a column `url`.

    A sound that cannot be fetched is named in the log, and its file is missing.

    Raises:
        ManifestError: An address is of an unknown kind, or nothing can be fetched.
        CorpusError: A file cannot be written.
    """
    paths = clips.table["path"].tolist()
    places = {path: _place(path) for path in paths if is_address(path)}
    if not places:
        return clips
    home, root = Path(cache_home()).expanduser() / SOURCES / "fetched", os.path.abspath(clips.root)
    todo = [address for address, place in places.items() if not (home / place).is_file()]
    if len(todo) < len(places):
        log.info("%d of %d sounds were fetched earlier, and lie in %s", len(places) - len(todo), len(places), home)
    failed = _fetch_all({address: home / places[address] for address in todo}, home, progress) if todo else {}
    warn_left_out([f"{address} ({reason})" for address, reason in failed.items()])
    if len(failed) == len(places):
        raise ManifestError(f"nothing could be fetched; {next(iter(failed))}: {next(iter(failed.values()))}")
    local = [places.get(path) or os.path.join(root, path) for path in paths]
    addresses = {} if URL in clips.table else {URL: [path if path in places else "" for path in paths]}
    return replace(clips, table=clips.table.assign(path=local, **addresses), root=home)


def _place(address: str) -> str:
    """Where the sound of an address lies below the folder of all: as in the address, if that can be a path."""
    scheme = address.split("://")[0].lower()
    if scheme not in (*HTTP, *OTHERS) or "::" in address:
        known = " ".join(f"{name}://" for name in (*HTTP, *OTHERS))
        raise ManifestError(f"{address}: cannot be fetched; known are {known}")
    if _PLAIN.fullmatch(address):
        return address.replace("://", "/", 1)
    stem, suffix = os.path.splitext(re.sub(r"[^\w.-]", "_", urlsplit(address).path.rsplit("/", 1)[-1])[-100:])
    return f"{scheme}/{stem}~{hashlib.sha256(address.encode()).hexdigest()[:16]}{suffix}"


def _fetch_all(wanted: dict[str, Path], home: Path, progress: bool) -> dict[str, str]:
    """Fetch each address to its file; why it cannot be done, for those that failed."""
    hosts = Counter(address.split("/")[2].rpartition("@")[2] for address in wanted)
    log.info("fetching %d sounds from %s", len(wanted), ", ".join(f"{host} ({n})" for host, n in hosts.most_common(5)))
    _require_packages({address.split("://")[0].lower() for address in wanted})
    with saving(home):
        home.mkdir(parents=True, exist_ok=True)
    failed = {}
    with locked(f"{home}.lock", PATIENCE), progress_bar("fetch", len(wanted), enabled=progress) as advance:
        for address, reason in in_order(lambda job: [(job[0], _get(*job))], wanted.items(), THREADS):
            advance(1)
            if reason:
                failed[address] = reason
    return failed


def _require_packages(schemes: set[str]) -> None:
    for scheme in schemes.difference(HTTP):
        try:
            importlib.import_module("fsspec").get_filesystem_class(scheme)
        except (ImportError, ValueError) as error:
            raise ManifestError(f"{scheme}:// cannot be fetched: {error}; or pip install 'decar[remote]'") from error


def _get(address: str, file: Path) -> str:
    """Fetch one sound, whole or not at all; returns why it cannot be had, "" where it is there."""
    if file.is_file():  # another process has fetched it in the meantime
        return ""
    part = file.with_name(f".{file.name}.part")
    with saving(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    try:
        if address.split("://")[0].lower() in HTTP:
            fetch(quote(address, safe="%/:=&?~#+!$,;'@()*[]"), part, tries=TRIES, most=MOST_BYTES)
        else:
            _copy_remote(address, part)
    except UnreachableError as error:
        return str(error)
    with saving(file):
        os.replace(part, file)
        tag_of(part).unlink(missing_ok=True)
    return ""


def _copy_remote(address: str, part: Path) -> None:
    try:
        with importlib.import_module("fsspec").open(address, "rb") as source:
            with saving(part):
                target = part.open("wb")
            with target:
                copy(source, target, part, most=MOST_BYTES)
    except (UnreachableError, CorpusError):
        raise
    except Exception as error:  # each of those packages raises its own
        raise UnreachableError(reason_of(error)) from error

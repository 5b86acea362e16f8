"""Sounds at addresses, such as https://example.org/owl.wav, in place of paths: fetched only if the caller asks for it.

A table is data, and may come from anybody: one that names an address makes no request. `fetched`, which `--fetch` of
`decar` calls, keeps the sounds in `CACHE/sources/fetched`. An address whose file is there is not requested again.
"""

from __future__ import annotations

import hashlib
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
from decar.errors import ManifestError
from decar.fetch import UnreachableError, fetch, tag_of
from decar.files import cache_home, locked, warn_left_out
from decar.objects import SCHEMES, check_address, is_address, is_object, read, require_package, scheme_of
from decar.unpack import saving

if TYPE_CHECKING:
    from decar.audio.manifest import Manifest

log = logging.getLogger(__name__)

URL = "url"  # the column of the addresses
HTTP = ("http", "https")
MOST_BYTES = 20 * 10**9  # of a sound
TRIES = 3
THREADS = 8
_PLAIN = re.compile(r"\w+:/(/(?!\.)[\w.,:;=%+ ~()'!-]{1,200})+", re.ASCII)  # an address that can be a path


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
    places = {path: place_of(path) for path in paths if is_address(path)}
    if not places:
        return clips
    home, root = fetched_home(), os.path.abspath(clips.root)
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


def fetched_home() -> Path:
    """The folder of all that was fetched."""
    return Path(cache_home()).expanduser() / SOURCES / "fetched"


def place_of(address: str) -> str:
    """Where the file of an address lies below the folder of all: as in the address, if that can be a path.

    Raises:
        ManifestError: The address is of an unknown kind, or holds a password, or a `#`, behind which no server sees
            anything: the sounds of two addresses would be one.
    """
    scheme = check_address(address, (*HTTP, *SCHEMES))
    if scheme in HTTP and "#" in address:
        raise ManifestError(
            f"{address}: what is behind # is not sent to a server: write %23 where it belongs to the name of the "
            "file; stretches of a sound are given by columns start and duration"
        )
    if _PLAIN.fullmatch(address):
        return address.replace("://", "/", 1)
    stem, suffix = os.path.splitext(re.sub(r"[^\w.-]", "_", urlsplit(address).path.rsplit("/", 1)[-1])[-100:])
    return f"{scheme}/{stem}~{hashlib.sha256(address.encode()).hexdigest()[:16]}{suffix}"


def _fetch_all(wanted: dict[str, Path], home: Path, progress: bool) -> dict[str, str]:
    """Fetch each address to its file; why it cannot be done, for those that failed."""
    hosts = Counter(address.split("/")[2].rpartition("@")[2] for address in wanted)
    log.info("fetching %d sounds from %s", len(wanted), ", ".join(f"{host} ({n})" for host, n in hosts.most_common(5)))
    for scheme in sorted({scheme_of(address) for address in wanted if is_object(address)}):
        require_package(scheme)
    with saving(home):
        home.mkdir(parents=True, exist_ok=True)
    failed = {}
    with locked(f"{home}.lock", PATIENCE), progress_bar("fetch", len(wanted), enabled=progress) as advance:
        for address, reason in in_order(lambda job: [(job[0], _get(*job))], wanted.items(), THREADS):
            advance(1)
            if reason:
                failed[address] = reason
    return failed


def _get(address: str, file: Path) -> str:
    """Fetch one sound, whole or not at all; returns why it cannot be had, "" where it is there."""
    if file.is_file():  # another process has fetched it in the meantime
        return ""
    part = file.with_name(f".{file.name}.part")
    with saving(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    try:
        if is_object(address):
            read(address, part, most=MOST_BYTES)
        else:
            fetch(quote(address, safe="%/:=&?~#+!$,;'@()*[]"), part, tries=TRIES, most=MOST_BYTES)
    except UnreachableError as error:
        return str(error)
    with saving(file):
        os.replace(part, file)
        tag_of(part).unlink(missing_ok=True)
    return ""

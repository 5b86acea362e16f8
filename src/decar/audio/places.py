"""What a user points at by an address, as a manifest: a prefix of a store, objects, a table or archive somewhere."""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path, PurePosixPath
from urllib.parse import quote, urlsplit

import pandas as pd

from decar.audio.manifest import Manifest
from decar.audio.origin import Origin, fetch_all, reachable, unusable
from decar.audio.remote import fetched, fetched_home, place_of
from decar.audio.scan import audio_below, labels_from_folders
from decar.audio.tables import is_parquet, is_table
from decar.errors import ManifestError
from decar.files import warn_left_out
from decar.objects import Stored, folder_of_pattern, is_address, is_object, listed, matching
from decar.unpack import ARCHIVES


def at_address(
    address: str, *, root: str | os.PathLike[str] | None, path_column: str, progress: bool = False
) -> Manifest:
    """The clips at an address; sounds are not fetched yet, tables, archives and Parquet files are.

    Args:
        address: As of `read_source`.
        root: As of `read_source`.
        path_column: As of `read_source`.
        progress: Whether to show a bar while files are fetched.

    Raises:
        ManifestError: Nothing is there, nothing of a known kind, or the store does not answer or refuses.
        CorpusError: An archive is damaged or refused, or a file cannot be written.
    """
    address = address.rstrip("/")
    place_of(address)  # refuses other kinds
    if not is_object(address):
        one = Manifest(pd.DataFrame({"path": [address]}), Path.cwd())
        if not _holds_sounds(urlsplit(address).path):
            refuse_options_of_tables(address, root, path_column)
            return one
        [file] = fetched(one, progress=progress).files
        return _inside(file, address, root, path_column)
    with reachable(address):
        found = matching(address) if "*" in address else listed(address)
    if [*found] != [""]:  # of a pattern that Parquet files fit, the column of sounds may be named
        refuse_options_of_tables(address, root, "path" if "*" in address else path_column)
    if "*" in address:
        return _of_pattern(folder_of_pattern(address), found, path_column, progress)
    if [*found] == [""]:
        address, _, name = address.rpartition("/")
        return _of_object(Origin(address, {name: found[""]}), name, root, path_column, progress)
    return _below(address, found)


def refuse_options_of_tables(source: str, root: str | os.PathLike[str] | None, path_column: str) -> None:
    """Raise a ManifestError where an option is given that only tables, and lists of paths, have."""
    if root is not None or path_column != "path":
        what = f"root={root}" if root is not None else f"path_column={path_column}"
        raise ManifestError(f"{source} with {what}: that is of tables and lists of paths; leave it out")


def _holds_sounds(name: str) -> bool:
    return name.lower().endswith(ARCHIVES) or is_table(Path(name))


def _of_object(origin: Origin, name: str, root: str | os.PathLike[str] | None, column: str, progress: bool) -> Manifest:
    if not _holds_sounds(name):
        refuse_options_of_tables(f"{origin.address}/{name}", root, column)
        return _clips(origin, [name])
    fetch_all(origin, [name], origin.home, progress=progress)
    return _inside(origin.home / name, f"{origin.address}/{name}", root, column)


def _of_pattern(folder: str, found: dict[str, Stored], column: str, progress: bool) -> Manifest:
    """All sounds that fit, or all Parquet files of one set; these in a folder that holds no others."""
    paths = sorted(found)
    if len(paths) == 1:
        return _of_object(Origin(folder, found), paths[0], None, column, progress)
    if not all(is_parquet(Path(path)) for path in paths):
        return _clips(Origin(folder, found), _usable(folder, paths))
    versions = hashlib.sha256("".join(f"{path}\0{found[path]}\0" for path in paths).encode()).hexdigest()
    home = fetched_home() / place_of(f"{folder}?{versions}")
    fetch_all(Origin(folder, found), paths, home, progress=progress)
    return Manifest.from_parquet(home / "**" / "*.[pP]*", path_column=column)


def _below(address: str, found: dict[str, Stored]) -> Manifest:
    """The sounds below a prefix, with the columns that those of a folder have."""
    shown = [path for path in found if not any(part.startswith(".") for part in path.split("/"))]
    paths = _usable(address, audio_below(address, shown))
    if not paths:
        kinds = Counter(PurePosixPath(path).suffix.lower() or "no ending" for path in found)
        named = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common(3))
        raise ManifestError(f"no audio found below {address}: {len(found)} objects ({named}); is it the right prefix?")
    clips = _clips(Origin(address, {path: found[path] for path in paths}), paths)
    return replace(clips, table=clips.table.assign(**labels_from_folders(paths)))


def _usable(address: str, paths: list[str]) -> list[str]:
    faults = {path: fault for path in paths if (fault := unusable(path))}
    warn_left_out([f"{address}/{path} ({fault})" for path, fault in faults.items()])
    return [path for path in paths if path not in faults]


def _clips(origin: Origin, paths: list[str]) -> Manifest:
    return Manifest(pd.DataFrame({"path": paths}), origin.home, origin=origin)


def _inside(file: Path, address: str, root: str | os.PathLike[str] | None, path_column: str) -> Manifest:
    """The clips of an archive or table that was fetched; relative paths of a table start where it lay."""
    clips = Manifest.from_path(file, root=root, path_column=path_column)
    if root is not None or clips.root != file.parent:  # the latter: its sounds are in it
        return clips
    paths = [_beside(address, path) for path in clips.table["path"]]
    return replace(clips, table=clips.table.assign(path=paths))


def _beside(address: str, path: str) -> str:
    """The address of a path that a table at an address names; signs of a file's name that end an address are escaped.

    >>> _beside("s3://bucket/birds/t.csv", "../bats/a.wav"), _beside("s3://bucket/t.csv", "https://example.org/a.wav")
    ('s3://bucket/bats/a.wav', 'https://example.org/a.wav')
    >>> _beside("https://example.org/birds/t.csv?of=a/b", "what?#1.wav")
    'https://example.org/birds/what%3F%231.wav'
    """
    if is_address(path) or os.path.isabs(path):
        return path
    scheme, _, place = address.partition("://")
    if not is_object(address):
        host, _, file = re.split(r"[?#]", place, maxsplit=1)[0].partition("/")
        path = re.sub(r"[#?]|%(?![0-9A-Fa-f]{2})", lambda sign: quote(sign[0]), path)
        return f"{scheme}://{host}{posixpath.normpath(posixpath.join('/', posixpath.dirname(file), path))}"
    return f"{scheme}:/{posixpath.normpath(posixpath.join('/', posixpath.dirname(place), path))}"

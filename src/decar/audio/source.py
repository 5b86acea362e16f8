"""What a user points at, as a manifest: folder, archive, table, pattern, one file or address, a list on stdin."""

from __future__ import annotations

import glob
import io
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from decar.audio.containers import folder_of
from decar.audio.manifest import Manifest
from decar.audio.origin import with_files
from decar.audio.places import at_address, refuse_options_of_tables
from decar.audio.remote import fetched
from decar.audio.scan import only_unicode
from decar.audio.tables import is_parquet, is_table
from decar.errors import ManifestError, is_unicode
from decar.files import not_a_file, warn_left_out
from decar.objects import is_address
from decar.unpack import is_archive

STDIN = "-"


def read_source(
    source: str | Path,
    *,
    root: str | Path | None = None,
    path_column: str = "path",
    stdin: Iterable[str] | None = None,
    fetch: bool = False,
    later: bool = False,
    progress: bool = False,
) -> Manifest:
    """The clips of a source.

    Args:
        source: A folder, or a zip or tar archive of one; a table with a column of paths (.csv, .tsv, .txt, .parquet);
            .parquet files that hold the sounds, also by a pattern; a pattern with `*`, `?` or `[]` (`**` for folders
            at any depth), whose files are all taken; one audio file; or "-": a path a line on stdin. Where `fetch`
            is set, also a prefix or object of a store (s3://, gs://, hf://datasets/…), a pattern with `*` of objects,
            and an archive, table, Parquet or audio file at any address.
        root: The folder or archive that relative paths of a table or of stdin start from; None: the table's folder, or
            this one.
        path_column: The column of a table that names the files.
        stdin: What "-" reads.
        fetch: Whether to fetch paths that are addresses, see `decar.audio.remote`; reading the sounds fails otherwise.
        later: Whether files below a prefix may come as they are needed, see `decar.audio.arrival`; otherwise they are
            all there when this returns.
        progress: Whether to show a bar while they are fetched.

    Raises:
        ManifestError: There is no such thing, or nothing in it.
        CorpusError: An archive is damaged or refused.
    """
    text = str(source)
    if not fetch:
        return _read(text, root, path_column, stdin)
    if is_address(text):
        clips = at_address(text, root=root, path_column=path_column, progress=progress)
    else:
        clips = _read(text, root, path_column, stdin)
    return clips if later and clips.origin else fetched(with_files(clips, progress=progress), progress=progress)


def _read(text: str, root: str | Path | None, path_column: str, stdin: Iterable[str] | None) -> Manifest:
    if text == STDIN:
        lines = (line.rstrip("\r\n") for line in (_stdin() if stdin is None else stdin))
        return _listed(
            [line for line in lines if line.strip()], root, "no path came on stdin: a path a line is expected"
        )
    if is_address(text):
        return _listed([text], None, "")
    path = Path(text).expanduser()
    folder = path.is_dir() or is_archive(path)
    if not folder and is_table(path) and (is_parquet(path) or path.exists() or not glob.has_magic(text)):
        return Manifest.from_path(path, root=root, path_column=path_column)
    if path.exists() or glob.has_magic(text):
        refuse_options_of_tables(text, root, path_column)
    if folder:
        return Manifest.from_folder(path)
    if path.exists():
        return _listed([text if path == Path(text) else str(path)], None, "")
    if glob.has_magic(text):
        none = f"{text}: no file fits this pattern; is it quoted, so that decar sees it?"
        return _listed(only_unicode(_matching(str(path))), None, none)
    raise ManifestError(
        f"{text} does not exist: give a folder, an archive, a table, an audio file, a pattern, or - for stdin"
    )


def _stdin() -> Iterable[str]:
    """The lines of standard input; bytes that are not UTF-8 become surrogates, as in the file names of Python."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    return sys.stdin


def _matching(pattern: str) -> list[str]:
    """The files that fit a pattern, sorted, each real folder once; what `find_files` would leave out is left out too.

    `glob` follows links to folders, and a link that leads back to its own folder forty times.
    """
    homes: dict[str, str] = {}
    found, left_out = [], []
    for name in sorted(glob.glob(pattern, recursive=True), key=lambda name: (name.count(os.sep), name)):
        folder = os.path.dirname(name)
        if os.path.isdir(name) or homes.setdefault(os.path.realpath(folder), folder) != folder:
            continue
        try:
            reason = not_a_file(name)
        except OSError as error:
            reason = error.strerror or str(error)
        if reason:
            left_out.append(f"{name} ({reason})")
        else:
            found.append(name)
    warn_left_out(left_out)
    return sorted(found)


def _listed(paths: list[str], root: str | Path | None, none: str) -> Manifest:
    if not paths:
        raise ManifestError(none)
    odd = next((path for path in paths if not is_unicode(path)), None)
    if odd is not None:
        raise ManifestError(f"{odd}: the name is not valid Unicode, which no table can hold: rename the file")
    return Manifest(pd.DataFrame({"path": paths}), Path.cwd() if root is None else folder_of(root))

"""What a user points at, as a manifest: a folder, a table, a pattern, one file, or a list of paths on stdin."""

from __future__ import annotations

import glob
import io
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from decar.audio.manifest import Manifest
from decar.audio.scan import only_unicode
from decar.audio.tables import is_table
from decar.errors import ManifestError, is_unicode
from decar.files import not_a_file, warn_left_out

STDIN = "-"


def read_source(
    source: str | Path,
    *,
    root: str | Path | None = None,
    path_column: str = "path",
    stdin: Iterable[str] | None = None,
) -> Manifest:
    """The clips of a source.

    Args:
        source: A folder; a table with a column of paths (.csv, .tsv, .txt, .parquet); a pattern with `*`, `?` or
            `[]` (`**` for folders at any depth), whose files are all taken; one audio file; or "-": a path a line on
            stdin.
        root: Where relative paths of a table or of stdin start from; the table's folder, or this one.
        path_column: The column of a table that names the files.
        stdin: What "-" reads.

    Raises:
        ManifestError: There is no such thing, or nothing in it.
    """
    text = str(source)
    if text == STDIN:
        lines = (line.rstrip("\r\n") for line in (_stdin() if stdin is None else stdin))
        return _listed(
            [line for line in lines if line.strip()], root, "no path came on stdin: a path a line is expected"
        )
    path = Path(text).expanduser()
    if path.is_dir():
        return Manifest.from_folder(path)
    if is_table(path) and not (glob.has_magic(text) and not path.exists()):
        return Manifest.from_path(path, root=root, path_column=path_column)
    if path.exists():
        return _listed([text if path == Path(text) else str(path)], None, "")
    if glob.has_magic(text):
        none = f"{text}: no file fits this pattern; is it quoted, so that decar sees it?"
        return _listed(only_unicode(_matching(str(path))), None, none)
    raise ManifestError(f"{text} does not exist: give a folder, a table, an audio file, a pattern, or - for stdin")


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
    return Manifest(pd.DataFrame({"path": paths}), Path.cwd() if root is None else Path(root).expanduser())

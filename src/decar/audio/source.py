"""What a user points at, as a manifest: a folder, a table, a pattern, one file, or a list of paths on stdin."""

from __future__ import annotations

import glob
import sys
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from decar.audio.manifest import Manifest
from decar.audio.tables import is_table
from decar.errors import ManifestError

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
        lines = (line.rstrip("\r\n") for line in (sys.stdin if stdin is None else stdin))
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
        found = sorted(name for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
        return _listed(found, None, f"{text}: no file fits this pattern; is it quoted, so that decar sees it?")
    raise ManifestError(f"{text} does not exist: give a folder, a table, an audio file, a pattern, or - for stdin")


def _listed(paths: list[str], root: str | Path | None, none: str) -> Manifest:
    if not paths:
        raise ManifestError(none)
    return Manifest(pd.DataFrame({"path": paths}), Path.cwd() if root is None else Path(root).expanduser())

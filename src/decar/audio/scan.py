"""A folder → the audio files in it, and what the names of its folders say about them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

log = logging.getLogger(__name__)

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")
SPLIT_NAMES = {
    "train": "train",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
    "dev": "valid",
    "test": "test",
}


def find_audio(folder: Path, *, recursive: bool) -> list[str]:
    """Paths below `folder` of all audio files, with forward slashes, sorted.

    Hidden files and folders are left out. Links to folders are followed, each real folder once, so that a loop of
    links ends. A folder that may not be read and a name that is not valid Unicode are left out with a warning.
    """
    found = []
    for path in _walk(folder, "", recursive, set()):
        try:
            path.encode("utf-8")
        except UnicodeEncodeError:  # no table or log could ever hold it
            log.warning("left out, the name is not valid Unicode, rename it: %s", ascii(path))
            continue
        found.append(path)
    return sorted(found)


def _walk(folder: Path, prefix: str, recursive: bool, seen: set[tuple[int, int]]) -> Iterator[str]:
    try:
        stat = folder.stat()
        entries = list(os.scandir(folder))
    except OSError as error:
        log.warning("left out, the folder %s cannot be read: %s", ascii(str(folder)), error.strerror)
        return
    if (stat.st_dev, stat.st_ino) in seen:
        return
    seen.add((stat.st_dev, stat.st_ino))
    for entry in sorted(entries, key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if recursive:
                yield from _walk(Path(entry.path), f"{prefix}{entry.name}/", recursive, seen)
        elif entry.name.lower().endswith(AUDIO_SUFFIXES) and (entry.is_file() or entry.is_symlink()):
            yield prefix + entry.name  # a dangling link is kept: the store then names it as a bad clip


def labels_from_folders(paths: list[str]) -> dict[str, list[str]]:
    """Columns `label`, and `split` when every first-level folder is named like one.

    Args:
        paths: relative to the root, with forward slashes.

    Returns:
        Column name → one text a path, "" where a path has no such folder.
    """
    parents = [PurePosixPath(path).parts[:-1] for path in paths]
    first = {parts[0].lower() for parts in parents if parts}
    if not first or not first <= SPLIT_NAMES.keys():
        return {"label": [parts[0] if parts else "" for parts in parents]}
    return {
        "label": [parts[1] if len(parts) > 1 else "" for parts in parents],
        "split": [SPLIT_NAMES[parts[0].lower()] if parts else "" for parts in parents],
    }

"""A folder → the audio files in it, and what the names of its folders say about them."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from decar.audio import ffmpeg

log = logging.getLogger(__name__)

# What libsndfile reads. Left out are endings that are mostly something else: mat, raw, htk, mpc, iff, sd2, xi.
AUDIO_SUFFIXES = (
    *(".wav", ".wave", ".bwf", ".rf64", ".w64", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".mp2", ".mpga"),
    *(".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".voc", ".nist", ".sph", ".avr", ".paf", ".pvf", ".svx", ".sds"),
    *(".ircam", ".wve"),
)
KINDS_NAMED = 8  # endings in the line about what is passed over
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

    Files that libsndfile reads, and where the program ffmpeg is installed those that it reads, by their endings. One
    line of the log counts the others by ending; it is a warning when ffmpeg would read some of them. Hidden files and
    folders are left out. Links to folders are followed, each real folder once, so that a loop of links ends. A folder
    that may not be read and a name that is not valid Unicode are left out with a warning.
    """
    found = []
    passed_over: Counter[str] = Counter()
    suffixes = (*AUDIO_SUFFIXES, *(ffmpeg.SUFFIXES if ffmpeg.available() else ()))
    for path in _walk(folder, "", recursive, set()):
        if not path.lower().endswith(suffixes):
            passed_over[os.path.splitext(path)[1].lower()] += 1
            continue
        try:
            path.encode("utf-8")
        except UnicodeEncodeError:  # no table or log could ever hold it
            log.warning("left out, the name is not valid Unicode, rename it: %s", ascii(path))
            continue
        found.append(path)
    _report(folder, passed_over)
    return sorted(found)


def _report(folder: Path, passed_over: Counter[str]) -> None:
    """One line: how many files of which ending are not read."""
    if not passed_over:
        return
    kinds = sorted(passed_over, key=lambda suffix: (suffix not in ffmpeg.SUFFIXES, -passed_over[suffix], suffix))
    named = [f"{passed_over[suffix]} {ascii(suffix)[1:-1] or 'without an ending'}" for suffix in kinds[:KINDS_NAMED]]
    if rest := sum(passed_over[suffix] for suffix in kinds[KINDS_NAMED:]):
        named.append(f"{rest} of other endings")
    sound = kinds[0] in ffmpeg.SUFFIXES  # then it is not installed
    cure = f"; {ffmpeg.INSTALL}" if sound else ""
    log.log(logging.WARNING if sound else logging.INFO, "passed over in %s: %s%s", folder, ", ".join(named), cure)


def _walk(folder: Path, prefix: str, recursive: bool, seen: set[tuple[int, int]]) -> Iterator[str]:
    """Every file below a folder that is not hidden."""
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
        elif entry.is_file() or entry.is_symlink():
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

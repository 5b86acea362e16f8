"""A folder → the audio files in it, and what the names of its folders say about them."""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path, PurePosixPath

from decar.audio import ffmpeg
from decar.errors import is_unicode
from decar.files import find_files, warn_left_out

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
    folders are left out, and, with a warning, names that are not valid Unicode and what `find_files` leaves out. Links
    to folders are followed, each real folder once.
    """
    return audio_below(folder, find_files(folder, recursive=recursive, hidden=False))


def audio_below(folder: Path | str, files: list[str]) -> list[str]:
    """The audio files among those below a folder, as `find_audio` has them."""
    suffixes = (*AUDIO_SUFFIXES, *(ffmpeg.SUFFIXES if ffmpeg.available() else ()))
    audio = [path for path in files if path.lower().endswith(suffixes)]
    _report(folder, Counter(os.path.splitext(path)[1].lower() for path in set(files).difference(audio)))
    return sorted(only_unicode(audio))


def only_unicode(paths: list[str]) -> list[str]:
    """The paths that a table can hold; the others are left out with a warning each."""
    warn_left_out([f"{path} (its name is not valid Unicode: rename it)" for path in paths if not is_unicode(path)])
    return [path for path in paths if is_unicode(path)]


def _report(folder: Path | str, passed_over: Counter[str]) -> None:
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


def below_wrapper(paths: list[str]) -> list[str]:
    """Paths in an archive without the folder that wraps all others, as `zip -r sounds.zip sounds` makes one."""
    parts = [path.split("/") for path in paths]
    first = {names[0] if len(names) > 1 else "" for names in parts}
    wrapped = len(first) == 1 and max(map(len, parts)) > 2 and first.pop().lower() not in SPLIT_NAMES
    return ["/".join(names[1:]) for names in parts] if wrapped else paths


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
        _warn_of_splits(first)
        return {"label": [parts[0] if parts else "" for parts in parents]}
    return {
        "label": [parts[1] if len(parts) > 1 else "" for parts in parents],
        "split": [SPLIT_NAMES[parts[0].lower()] if parts else "" for parts in parents],
    }


def _warn_of_splits(first: set[str]) -> None:
    """Name folders of several splits beside others; a single one, as `train`, may be a class."""
    named = sorted(first & SPLIT_NAMES.keys())
    if len({SPLIT_NAMES[name] for name in named}) > 1:
        others = sorted(first.difference(named))
        log.warning(
            "the folders %s are named as splits, and %s %s not: all of them are labels; take the latter out, or give "
            "a table", ", ".join(named), ", ".join(others[:KINDS_NAMED]), "is" if len(others) == 1 else "are",
        )  # fmt: skip

"""Packages as files: fetched by name with their registry's own client, never installed; members read as data.

Nothing of a package is run: PyPI packages are taken as wheels only, npm ones with `--ignore-scripts`. Of an archive
only the plain files that are wanted are unpacked, by `decar.unpack` with its bounds.
"""

import contextlib
import hashlib
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO

from decar.errors import CorpusError
from decar.unpack import BOUNDS, Member, write_members

NESTED = (".zip", ".pk3", ".orgue")
Wanted = Callable[[str], bool]


class UnavailableError(Exception):
    """A package cannot be had, or is not what the table describes; the message is one line."""


def fetch(source: str, package: str, version: str, folder: Path) -> tuple[Path, str]:
    """The package's archive in `folder` and its version.

    Raises:
        UnavailableError: The registry has no such package or version, or its client is missing.
    """
    commands = {
        "debian": ["apt-get", "download", "-q", package],
        "pypi": [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:",
                 f"{package}=={version}"],
        "npm": ["npm", "pack", "--silent", "--ignore-scripts", f"{package}@{version}"],
    }  # fmt: skip
    try:
        done = subprocess.run(commands[source], cwd=folder, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UnavailableError(f"cannot run {commands[source][0]}: {error.strerror}") from error
    found = [path for path in folder.iterdir() if path.suffix in (".deb", ".whl", ".tgz")]
    if done.returncode or len(found) != 1:
        words = (done.stderr or done.stdout).strip().splitlines()
        raise UnavailableError(f"not to be had ({words[-1] if words else 'no message'})")
    return found[0], found[0].name.split("_")[1].replace("%3a", ":") if source == "debian" else version


def unpack(archive: Path, folder: Path, wanted: Wanted) -> None:
    """Write the wanted files of a .deb, .whl or .tgz; those of an archive inside lie in the folder `ARCHIVE!`.

    Raises:
        UnavailableError: The archive is damaged, exceeds the bounds, or has no wanted file.
    """
    try:
        _write(archive, folder, wanted)
        for nested in [path for path in folder.rglob("*") if path.suffix in NESTED]:
            prefix = f"{nested.relative_to(folder).as_posix()}!"
            _write(nested, folder / prefix, partial(_within, wanted, prefix))
            nested.unlink()
    except (CorpusError, zipfile.BadZipFile, OSError) as error:
        raise UnavailableError(f"cannot be unpacked ({error})") from error


def digest(path: Path) -> str:
    """The first 16 digits of a file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _within(wanted: Wanted, prefix: str, name: str) -> bool:
    return wanted(prefix + name)


def _write(archive: Path, folder: Path, wanted: Wanted) -> None:
    with _members(archive, wanted) as members:
        write_members(archive, members, folder, BOUNDS)


@contextlib.contextmanager
def _members(archive: Path, wanted: Wanted) -> Iterator[Iterator[Member]]:
    """The wanted plain files of an archive."""
    if archive.suffix == ".deb":
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", archive], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            yield _of_tar(process.stdout, wanted)
            process.stdout.close()
    elif archive.suffix == ".tgz":
        with archive.open("rb") as file:
            yield _of_tar(file, wanted, "r|gz")
    else:
        with zipfile.ZipFile(archive) as opened:
            yield _of_zip(opened, wanted)


def _of_tar(file: IO[bytes], wanted: Wanted, mode: str = "r|") -> Iterator[Member]:
    with tarfile.open(fileobj=file, mode=mode) as archive:  # type: ignore[call-overload]
        for member in archive:
            name = member.name.removeprefix("./")
            if member.isreg() and wanted(name):
                yield name, archive.extractfile(member)


def _of_zip(archive: zipfile.ZipFile, wanted: Wanted) -> Iterator[Member]:
    for info in archive.infolist():
        if not info.is_dir() and wanted(info.filename):
            with archive.open(info) as content:
                yield info.filename, content

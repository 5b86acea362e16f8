"""Sounds inside a file: an archive, or a Parquet file with a column of sounds, as `datasets` writes it.

They are unpacked once, into `CACHE/sources/DIGEST`, and read from there like any folder. Reading them in place would
save that room on the disk, but everything that opens a sound would have to know of containers: libsndfile and the
program ffmpeg take a path, digests and stretches need to seek, which a compressed member cannot, and pages play clips
long after the command. Unpacking costs little: of 1,200 clips of 10 s (384 MB) on two cores, a zip takes 2.4 s, a zip
without compression or a Parquet file 1.0 s, a later call 0.3 s; embedding them takes 50 s.

DIGEST is of the content of the container, which is read at each call: a container that has changed gets another folder,
one that was moved does not. A folder has its name only once it is complete; `DIGEST.json` says how much is in it, and
where that is not so, as after a clean-up by age, it is unpacked anew.
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
import os
import re
import shutil
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from decar.audio.tables import MOST_BYTES, check_file, parquet_errors, read_parquet_table
from decar.digests import DamagedError, read_json, write_json
from decar.errors import ManifestError
from decar.files import advice, cache_home, locked, whole
from decar.objects import is_address
from decar.unpack import BOUNDS, Member, UnwritableError, is_archive, unpack, write_members

SOURCES = "sources"  # folder of the cache
FORMAT = 1  # of what is unpacked; raise it when names or contents change
PATIENCE = 24 * 3600.0  # s: another process that unpacks the same is waited for
ROWS = 16  # of a Parquet file in memory at once
LONGEST_NAME = 200  # bytes; file systems take 255
_BLOCK = 1 << 20


def folder_of(root: str | os.PathLike[str]) -> Path:
    """The folder that a root of paths stands for: that of the unpacked sounds, where it is an archive.

    Raises:
        ManifestError: It cannot be read, or what is in it cannot be written into the cache.
        CorpusError: It is damaged or refused.
    """
    path = Path(root).expanduser()
    if is_address(str(root)):
        raise ManifestError(
            f"{root} is an address, and sounds are read from this disk here: `decar embed`, `cluster`, `predict` and "
            "`suggest` take addresses as SOURCE, with --fetch; for other uses copy the sounds first"
        )
    return _stored([path], lambda folder: unpack(path, folder, BOUNDS)) if is_archive(path) else path


def read_sounds(source: Path, path_column: str) -> tuple[pd.DataFrame, Path] | None:
    """The rows of a Parquet file whose sounds are in it, `path` in place of the column of sounds, and their folder.

    None where the paths of the sounds are in it. Names of classes, which `datasets` writes into the metadata, take the
    place of their numbers.

    Args:
        source: A file, or a pattern of several of one set.
        path_column: The column of sounds, where there are several; `path`: the only one.

    Raises:
        ManifestError: A file is damaged, there are several such columns, or sounds are not in it but elsewhere.
        CorpusError: It unfolds to more than the limits allow.
    """
    found = sorted(glob.glob(str(source), recursive=True)) if glob.has_magic(str(source)) else []
    files = [source] if source.exists() or not found else [Path(file) for file in found]
    columns = {_sound_column(file, path_column) for file in files}
    if len(columns) > 1 or (columns == {None} and len(files) > 1):
        raise ManifestError(f"{source}: {len(files)} tables that are not of one set of sounds: give one of them")
    [column] = columns
    if column is None:
        return None
    tables, names, taken = [], [], set[str]()
    for file in files:
        table = _with_class_names(read_parquet_table(file), file).drop(columns="path", errors="ignore")
        names.append([_unused(name, taken) for name in _names(file, column)])
        if len(table.columns) and len(table) != len(names[-1]):
            raise ManifestError(f"{file}: damaged: {len(names[-1])} sounds, but {len(table)} rows of other columns")
        tables.append(table.assign(path=names[-1]))

    def fill(folder: Path) -> None:
        for file, those in zip(files, names, strict=True):
            write_members(file, _rows(file, column, those), folder, BOUNDS)

    table = pd.concat(tables, ignore_index=True).fillna("")
    if not len(table):
        raise ManifestError(f"{source}: has no rows: one row a clip is expected")
    return table[["path", *table.columns.drop("path")]], _stored(files, fill)


def _stored(files: Sequence[Path], fill: Callable[[Path], None]) -> Path:
    """The folder of what is in some files; `fill` writes it where it is not there yet."""
    named = ", ".join(map(str, files[:2])) + (" and others" if files[2:] else "")
    try:
        states, digest = [_state(file) for file in files], _digest(files)
    except OSError as error:
        raise ManifestError(f"{error.filename or named}: cannot be read ({error.strerror or error})") from error
    folder = Path(cache_home()).expanduser() / SOURCES / digest
    try:
        if not _is_complete(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with locked(f"{folder}.lock", PATIENCE):
                if not _is_complete(folder):
                    _build(folder, fill)
    except (OSError, UnwritableError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        reason = getattr(cause, "strerror", None) or cause
        raise ManifestError(
            f"{named}: cannot be unpacked to {getattr(cause, 'filename', None) or folder} ({reason}): {advice(error)}; "
            "the environment variable DECAR_CACHE names another folder for the cache"
        ) from error
    if [_state(file) for file in files] != states:
        raise ManifestError(f"{named}: has changed while it was read; run the same command again")
    return folder


def _state(file: Path) -> tuple[int, int, int]:
    info = file.stat()
    return info.st_size, info.st_mtime_ns, info.st_ino


def _digest(files: Sequence[Path]) -> str:
    """SHA-256 of all content; a checksum would do for accidents, but archives come from anybody."""
    digest = hashlib.sha256(b"%d" % FORMAT)
    for file in files:
        one = hashlib.sha256()
        with file.open("rb") as source:
            while block := source.read(_BLOCK):
                one.update(block)
        digest.update(one.digest())
    return digest.hexdigest()[:40]


def _build(folder: Path, fill: Callable[[Path], None]) -> None:
    """Write a folder beside its place, and put it there when it is complete."""
    part = folder.with_suffix(".part")
    for old in (part, folder):
        shutil.rmtree(old, ignore_errors=True)
    try:
        fill(part)
        time = _time(folder)
        for at, _, names in os.walk(part):
            for name in names:
                os.utime(os.path.join(at, name), ns=(time, time))
        with whole(folder.with_suffix(".json")) as file:
            write_json(file, _measure(part, time))
        os.replace(part, folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _time(folder: Path) -> int:
    """The modification time of all files of a folder, ns: no other content has it.

    Digests of large sounds are of samples of them and of their time (see `identity`); so results of the same container
    are found again after the cache has been cleared, and results of a changed one are not taken.
    """
    return 10**18 + int(folder.name[:14], 16)


def _is_complete(folder: Path) -> bool:
    try:
        return read_json(folder.with_suffix(".json")) == _measure(folder, _time(folder))
    except (OSError, DamagedError):
        return False


def _measure(folder: Path, time: int) -> dict[str, int]:
    """How many files there are that nothing has changed since they were unpacked, and their bytes."""
    infos = [os.stat(os.path.join(at, name)) for at, _, names in os.walk(folder) for name in names]
    sizes = [info.st_size for info in infos if abs(info.st_mtime_ns - time) < 2 * 10**9]  # FAT has steps of 2 s
    return {"files": len(sizes), "bytes": sum(sizes)}


def _sound_column(file: Path, wanted: str) -> str | None:
    """The column that holds sounds, if there is one and no other one is wanted."""
    with parquet_errors(file):
        check_file(file)
        schema = pq.read_schema(file)
    features = _features(schema)
    found = [
        field.name
        for field in schema
        if pa.types.is_struct(field.type)
        and {("bytes", "binary"), ("path", "string")}
        <= {(child.name, str(child.type).removeprefix("large_")) for child in field.type}
        and features.get(field.name, {}).get("_type", "Audio") == "Audio"
    ]
    if wanted != "path":
        return wanted if wanted in found else None
    if len(found) > 1:
        names = ", ".join(f"'{name}'" for name in found)
        raise ManifestError(f"{file}: {names} hold sounds: name one (--path-column NAME, data.path_column=NAME)")
    return found[0] if found else None


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """What `datasets` says of the columns; nothing where it says nothing that can be read."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return {str(name): facts for name, facts in features.items() if isinstance(facts, dict)}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


def _with_class_names(table: pd.DataFrame, file: Path) -> pd.DataFrame:
    for column, facts in _features(pq.read_schema(file)).items():
        names = facts.get("names")
        if column not in table or facts.get("_type") != "ClassLabel" or not isinstance(names, list):
            continue
        known = {"": "", "-1": "", **{str(number): str(name) for number, name in enumerate(names)}}
        if strange := sorted(set(table[column]) - set(known)):
            raise ManifestError(f"{file}: column '{column}': {strange[0]} is no number of its {len(names)} classes")
        table = table.assign(**{column: table[column].map(known)})
    return table


def _opened(file: Path) -> Any:
    """A Parquet file of which a row group is in memory at most; pyarrow's default is to keep all that was read."""
    return pq.ParquetFile(file, page_checksum_verification=True, pre_buffer=False, buffer_size=_BLOCK)


def _names(file: Path, column: str) -> Iterator[str]:
    """A file name for each sound: the one that it had, else the number of its row."""
    with parquet_errors(file):
        size = 0
        for batch in _opened(file).iter_batches(columns=[f"{column}.path"]):
            size += batch.nbytes
            if size > MOST_BYTES:
                raise ManifestError(f"the table {file}: its paths unfold to more than {MOST_BYTES:,} bytes")
            for sound in batch.column(0).to_pylist():
                name = PureWindowsPath((sound or {}).get("path") or "").name
                yield re.sub(r"[\x00-\x1f]", "_", name).encode()[-LONGEST_NAME:].decode(errors="ignore")


def _unused(name: str, taken: set[str]) -> str:
    """The name, with a number before its ending where another sound is called so; what stands before stays readable.

    Names that differ in capitals or in the code of an accent are one file on some disks, and count as one here.
    """
    stem, suffix = os.path.splitext(name or "sound")
    number, unused = 1, stem + suffix
    while (key := unicodedata.normalize("NFD", unused).casefold()) in taken:
        number += 1
        unused = f"{stem}~{number}{suffix}"
    taken.add(key)
    return unused


def _rows(file: Path, column: str, names: Sequence[str]) -> Iterator[Member]:
    """Name and content of each sound; one that is missing altogether is an empty file, which is reported as that."""
    unnamed = iter(names)
    for batch in _opened(file).iter_batches(batch_size=ROWS, columns=[f"{column}.bytes", f"{column}.path"]):
        for sound in batch.column(0).to_pylist():
            content = (sound or {}).get("bytes")
            if content is None and (sound or {}).get("path"):
                raise ManifestError(
                    f"{file}: the column '{column}' holds only the path of {sound['path']}, not its bytes: write the "
                    "file with the sounds in it, or name a column of paths (--path-column, data.path_column)"
                )
            yield next(unnamed), io.BytesIO(content or b"")

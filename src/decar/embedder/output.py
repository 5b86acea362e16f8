"""Rows → Parquet, or npy with its list of paths; what could not be embedded → FILE.bad.csv. Whole or not at all.

An output at an address, such as s3://bucket/e.parquet, is written in the cache first, and copied when it is complete.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from decar.digests import seal_parquet
from decar.errors import ConfigError, SearchError, one_line
from decar.fetch import UnreachableError
from decar.files import cache_home, whole, write_csv
from decar.objects import SCHEMES, check_address, check_bucket, is_address, remove, write

ROWS_AT_ONCE = 1024
SUFFIXES = (".parquet", ".pq", ".npy")
HEADER = b"decar"  # of a Parquet file's metadata: JSON with encoder (hash), bundle, root, sample_rate, window
CHECKED = "checksums"  # of that JSON: pages and footer have some
BAD = ["path", "reason"]  # columns of the list of what was left out
OUTPUTS = "outputs"  # folder of the cache


def check_out(out: str | Path) -> None:
    """Refuse an output whose ending does not say what to write, and an address without a bucket.

    Raises:
        ConfigError: It is such an output.
        ManifestError: The address is of an unknown kind.
    """
    if Path(out).suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--out {out}: the name has to end in .parquet or .npy")
    if isinstance(out, Path) and str(out).startswith(tuple(f"{scheme}:/" for scheme in SCHEMES)):
        raise ConfigError(f"--out {out}: give an address as text, a path loses one of its slashes")
    if is_address(str(out)):
        check_address(str(out), SCHEMES)
        with _reached(str(out)):
            check_bucket(str(out))


def places_of(out: str | Path) -> tuple[Path, Path]:
    """The file that an output is written to, and the folder of its unfinished rows; of an address both in the cache.

    The file of an address lies in the folder, and is deleted with it once it has been copied.
    """
    if not is_address(str(out)):
        return Path(out), Path(out).with_name(f".{Path(out).name}.parts")
    folder = Path(cache_home()).expanduser() / OUTPUTS / hashlib.sha256(str(out).encode()).hexdigest()[:40]
    return folder / f"out{Path(out).suffix.lower()}", folder


def deliver(file: Path, out: str | Path) -> None:
    """Copy an output and what lies beside it to its address, the output last; lists that are out of date are deleted.

    Raises:
        ConfigError: The store cannot be reached or refuses.
    """
    if not is_address(str(out)):
        return
    for what in ("paths", "bad"):
        with _reached(address := name_beside(out, what)):
            if beside(file, what).exists():
                write(beside(file, what), address)
            else:
                remove(address)
    if file.exists():
        with _reached(str(out)):
            write(file, str(out))


@contextmanager
def _reached(address: str) -> Iterator[None]:
    try:
        yield
    except UnreachableError as error:
        raise ConfigError(f"--out {address}: {error}") from error


def write_rows(out: Path, table: pd.DataFrame, vectors: NDArray[np.float32], facts: Mapping[str, object]) -> None:
    """Write `(R, D)` rows beside what is known of each, as the ending of `out` says; Parquet with checksums.

    Raises:
        OSError: The file cannot be written.
    """
    if out.suffix.lower() == ".npy":
        with whole(beside(out, "paths")) as part:
            write_csv(table, part)
        with whole(out) as part, part.open("wb") as file:
            head = {"descr": "<f4", "fortran_order": False, "shape": vectors.shape}
            np.lib.format.write_array_header_1_0(file, head)
            for first in range(0, len(vectors), ROWS_AT_ONCE):
                file.write(np.ascontiguousarray(vectors[first : first + ROWS_AT_ONCE], "<f4").tobytes())
        return
    known = pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata(None)
    schema = known.schema.append(pa.field("embedding", pa.list_(pa.float32(), vectors.shape[1])))
    schema = schema.with_metadata({HEADER: json.dumps({**facts, CHECKED: True}, sort_keys=True).encode()})
    with whole(out) as part:
        with pq.ParquetWriter(part, schema, write_page_checksum=True) as writer:
            for first in range(0, len(vectors), ROWS_AT_ONCE):
                rows = np.ascontiguousarray(vectors[first : first + ROWS_AT_ONCE], np.float32)
                column = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
                piece = known.slice(first, len(rows)).append_column(schema.field("embedding"), column)
                writer.write_table(piece.cast(schema))
        seal_parquet(part)


def write_bad(out: Path, bad: pd.DataFrame) -> None:
    """The list of what was left out; an older one goes when there is nothing to tell."""
    if not len(bad):
        beside(out, "bad").unlink(missing_ok=True)
        return
    with whole(beside(out, "bad")) as part:
        write_csv(bad, part)


def read_bad(out: Path) -> pd.DataFrame:
    """What `write_bad` has written; no rows where it has not.

    Raises:
        SearchError: Somebody else has.
    """
    file = beside(out, "bad")
    try:
        bad = pd.read_csv(file, dtype=str, keep_default_na=False) if file.is_file() else pd.DataFrame(columns=BAD)
    except (OSError, ValueError) as error:
        raise SearchError(f"{file}: cannot be read ({one_line(error)})") from error
    if not {*BAD} <= {*bad.columns}:
        raise SearchError(f"{file}: has no columns {' and '.join(BAD)}")
    return bad


def beside(out: Path, what: str) -> Path:
    """FILE.paths.csv, FILE.bad.csv."""
    return Path(name_beside(out, what))


def name_beside(out: str | Path, what: str) -> str:
    """The same of an output that may be an address."""
    return f"{out}.{what}.csv"

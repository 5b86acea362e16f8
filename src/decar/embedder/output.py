"""Rows → Parquet, or npy with its list of paths; what could not be embedded → FILE.bad.csv. Whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from decar.digests import seal_parquet
from decar.errors import ConfigError
from decar.files import whole, write_csv

ROWS_AT_ONCE = 1024
SUFFIXES = (".parquet", ".pq", ".npy")
HEADER = b"decar"  # of a Parquet file's metadata: JSON with encoder (hash), bundle, root, sample_rate, window
CHECKED = "checksums"  # of that JSON: pages and footer have some


def check_out(out: Path) -> None:
    """Raise a ConfigError unless the ending says what to write."""
    if out.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--out {out}: the name has to end in .parquet or .npy")


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


def beside(out: Path, what: str) -> Path:
    """FILE.paths.csv, FILE.bad.csv."""
    return out.with_name(f"{out.name}.{what}.csv")

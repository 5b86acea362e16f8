"""A Parquet file of embeddings: a row a clip, `path` and `embedding`, and who made it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from decar.audio.tables import read_flat
from decar.digests import DamagedError, check_parquet
from decar.errors import SearchError

EMBEDDING = "embedding"
_ROWS_AT_ONCE = 4096  # of 3,072 numbers: 50 MB


@dataclass(frozen=True)
class EmbeddingTable:
    """An embeddings file that is read a block at a time: memory does not grow with it.

    Attributes:
        file: The file.
        rows: `N` rows: `path`, and whatever else the file has but the embeddings.
        dim: `D`.
        facts: What its maker wrote down under the key `decar`: `encoder` (hash), `bundle`; empty when it is foreign.
    """

    file: Path
    rows: pd.DataFrame
    dim: int
    facts: dict[str, Any]

    @classmethod
    def open(cls, file: str | Path) -> "EmbeddingTable":
        """Look at a file.

        Raises:
            SearchError: It is missing, no Parquet, empty, or lacks `path` or an `embedding` of numbers.
        """
        file = Path(file)
        if not file.is_file():
            raise SearchError(f"{file}: no such file; `decar embed SOURCE --bundle RUN --out FILE.parquet` makes one")
        try:
            sealed = check_parquet(file)
            with _parquet(file) as parquet:
                schema = parquet.schema_arrow
                _check(file, schema)
                rows = read_flat(file, [name for name in schema.names if name != EMBEDDING]).to_pandas()
                first = next(parquet.iter_batches(1, columns=[EMBEDDING]), None)
            if _facts(schema).get("checksums") and not sealed:
                raise DamagedError("its footer has lost its checksum")
        except (pa.ArrowException, OSError, ValueError) as error:
            raise _unreadable(file, error) from error
        if first is None or not len(rows):
            raise SearchError(f"{file}: holds no rows: nothing can be found in it")
        vectors = _matrix(first.column(0), None)
        if vectors is None or not vectors.shape[1]:
            raise SearchError(f"{file}, row 1: no embedding there; embed the clips anew")
        return cls(file, rows.reset_index(drop=True), vectors.shape[1], _facts(schema))

    def __len__(self) -> int:
        return len(self.rows)

    def blocks(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """All embeddings in order: number of the first row, and `(n, D)`.

        Raises:
            SearchError: The file is damaged, or a row has no embedding, one of another width, or one that is not
                finite.
        """
        start = 0
        try:
            with _parquet(self.file) as parquet:
                for batch in parquet.iter_batches(_ROWS_AT_ONCE, columns=[EMBEDDING]):
                    yield start, self._checked(start, batch.column(0))
                    start += len(batch)
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(self.file, error) from error

    def _checked(self, start: int, column: Any) -> NDArray[np.float32]:
        vectors = _matrix(column, self.dim)
        if vectors is None:
            widths = column.value_lengths().to_numpy(zero_copy_only=False)
            wrong = int(np.flatnonzero(widths != self.dim)[0])
            raise SearchError(f"{self.named(start + wrong)}: an embedding of another width than {self.dim}, or none")
        bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(bad):
            raise SearchError(f"{self.named(start + int(bad[0]))}: its embedding holds NaN or Inf; embed it anew")
        return vectors

    def named(self, row: int) -> str:
        """A row, for a message."""
        return f"{self.file}, row {row + 1} ({self.rows['path'].iloc[row]})"

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The embeddings of some rows, `(n, D)`, in one pass over the file."""
        out = np.empty((len(rows), self.dim), np.float32)
        for start, vectors in self.blocks():
            here = (rows >= start) & (rows < start + len(vectors))
            out[here] = vectors[rows[here] - start]
        return out


def _parquet(file: Path) -> pq.ParquetFile:
    """The file, whose pages are compared with their checksums, if they have some, as they are read."""
    return pq.ParquetFile(file, pre_buffer=False, page_checksum_verification=True)


def _unreadable(file: Path, error: Exception) -> SearchError:
    reason = " ".join(str(error).split())[:160]
    return SearchError(f"{file}: cannot be read as Parquet ({reason}); if it is damaged, embed the clips anew")


def _check(file: Path, schema: pa.Schema) -> None:
    there = ", ".join(schema.names) or "none"
    for name in ("path", EMBEDDING):
        if name not in schema.names:
            raise SearchError(f"{file}: no column '{name}' (columns: {there}); `decar embed` writes such a table")
    kind = schema.field(EMBEDDING).type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not (lists and pa.types.is_floating(kind.value_type)):
        raise SearchError(f"{file}: the column 'embedding' holds {kind}, not lists of floating-point numbers")


def _matrix(column: Any, dim: int | None) -> NDArray[np.float32] | None:
    """Lists of one width as `(n, D)`; None when widths differ or one is missing."""
    widths = np.unique(column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False))
    if len(widths) != 1 or dim not in (None, int(widths[0])):
        return None
    values = column.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(values, np.float32).reshape(len(column), int(widths[0]))


def _facts(schema: pa.Schema) -> dict[str, Any]:
    try:
        found = json.loads((schema.metadata or {})[b"decar"])
    except (KeyError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}

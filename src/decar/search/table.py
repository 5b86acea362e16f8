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
from decar.errors import SearchError, one_line

EMBEDDING = "embedding"
STRETCH = ("start", "duration")  # s, optional columns
FACTS = ("encoder", "bundle", "root")  # that are used here: texts
_ROWS_AT_ONCE = 4096  # of 3,072 numbers: 50 MB


@dataclass(frozen=True)
class EmbeddingTable:
    """An embeddings file that is read a block at a time: memory does not grow with it.

    Attributes:
        file: The file.
        rows: `N` rows: `path`, `start` and `duration` (s, float) where the file has them, and its other columns.
        dim: `D`.
        facts: Metadata under the key `decar`: `encoder` (hash), `bundle`, `root`; empty in a table of another program.
    """

    file: Path
    rows: pd.DataFrame
    dim: int
    facts: dict[str, Any]

    @classmethod
    def open(cls, file: str | Path) -> "EmbeddingTable":
        """Open a file and check it.

        Raises:
            SearchError: It is missing, no Parquet, empty, lacks `path` or `embedding`, or one of the columns and facts
                that are used holds something else than it should.
        """
        file = Path(file)
        if not file.is_file():
            raise SearchError(f"{file}: no such file; `decar embed SOURCE --bundle RUN --out FILE.parquet` makes one")
        try:
            sealed = check_parquet(file)
            with _parquet(file) as parquet:
                schema = parquet.schema_arrow
                _check(file, schema)
                others = read_flat(file, [name for name in schema.names if name != EMBEDDING])
                others.validate(full=True)  # text that is no UTF-8 would fail when it is printed
                rows = others.to_pandas(ignore_metadata=True)  # pandas' index is a column like the others
                first = next(parquet.iter_batches(1, columns=[EMBEDDING]), None)
            if _facts(file, schema).get("checksums") and not sealed:
                raise DamagedError("its footer has lost its checksum")
        except (pa.ArrowException, OSError, ValueError) as error:
            raise _unreadable(file, error) from error
        if first is None or not len(rows):
            raise SearchError(f"{file}: holds no rows: nothing can be found in it")
        vectors = _matrix(first.column(0), None)
        if vectors is None or not vectors.shape[1]:
            raise SearchError(f"{file}, row 1: no embedding there; embed the clips anew")
        rows = rows.astype({name: np.float64 for name in STRETCH if name in rows})
        _check_stretches(file, rows)
        return cls(file, rows, vectors.shape[1], _facts(file, schema))

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
    """The file; its pages are checked as they are read, if they have checksums."""
    return pq.ParquetFile(file, pre_buffer=False, page_checksum_verification=True)


def _unreadable(file: Path, error: Exception) -> SearchError:
    return SearchError(f"{file}: cannot be read as Parquet ({one_line(error)}); if it is damaged, embed the clips anew")


def _check(file: Path, schema: pa.Schema) -> None:
    there = ", ".join(schema.names) or "none"
    for name in ("path", EMBEDDING):
        if name not in schema.names:
            raise SearchError(f"{file}: no column '{name}' (columns: {there}); `decar embed` writes such a table")
    for name in ("path", EMBEDDING, *STRETCH):
        if schema.names.count(name) > 1:
            raise SearchError(f"{file}: {schema.names.count(name)} columns are called '{name}'; keep one of them")
    kind = schema.field(EMBEDDING).type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not (lists and pa.types.is_floating(kind.value_type)):
        raise SearchError(f"{file}: the column 'embedding' holds {kind}, not lists of floating-point numbers")
    kind = schema.field("path").type
    if not _is_text(kind.value_type if pa.types.is_dictionary(kind) else kind):
        raise SearchError(f"{file}: the column 'path' holds {kind}, not text; write the paths of the sounds there")
    for name in STRETCH:
        kind = schema.field(name).type if name in schema.names else pa.null()
        if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)):
            raise SearchError(
                f"{file}: the column '{name}' holds {kind}, not numbers; convert it to seconds, or rename it if it is "
                "not where a clip lies in its file"
            )


def _check_stretches(file: Path, rows: pd.DataFrame) -> None:
    """Raise a SearchError for a start or duration that no clip has; NaN: the file's own."""
    for name in (name for name in STRETCH if name in rows):
        seconds = rows[name].to_numpy()
        wrong = np.flatnonzero(np.isinf(seconds) | (seconds < 0) | ((seconds == 0) & (name == "duration")))
        if len(wrong):
            raise SearchError(
                f"{file}, row {wrong[0] + 1}: {name}={seconds[wrong[0]]:g} is no number of seconds in a file"
            )


def _is_text(kind: pa.DataType) -> bool:
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    return any(is_kind(kind) for is_kind in texts)


def _matrix(column: Any, dim: int | None) -> NDArray[np.float32] | None:
    """Lists of one width as `(n, D)`; None when widths differ or one is missing."""
    widths = np.unique(column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False))
    if len(widths) != 1 or dim not in (None, int(widths[0])):
        return None
    values = column.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(values, np.float32).reshape(len(column), int(widths[0]))


def _facts(file: Path, schema: pa.Schema) -> dict[str, Any]:
    """The metadata under the key `decar`.

    Raises:
        SearchError: A fact that is used here is no text.
    """
    try:
        found = json.loads((schema.metadata or {})[b"decar"])
    except (KeyError, ValueError, RecursionError):
        return {}
    found = found if isinstance(found, dict) else {}
    for key in FACTS:
        if not isinstance(found.get(key) or "", str):
            raise SearchError(
                f"{file}: its metadata has {key}={found[key]!r}, which is no text: was it damaged? "
                "Embed the sounds anew, or remove the key 'decar' from the metadata"
            )
    return found

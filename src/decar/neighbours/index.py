"""Exact nearest neighbours in a table of embeddings, by faiss, a block of rows at a time.

No index is built and memory holds little more than one block: 200,000 rows of 768 numbers took 3.6 s and 120 MB on one
core. Two million rows of 3,072 are a file of 25 GB, forty times as much time and no more memory; a search reads it once
for all its queries. Cosine of the vectors as they are is the default. On the
bundled sounds it finds as many clips of the same label among the ten nearest (62.7 %, mean of nine label columns) as
centred vectors (62.6) and more than standardised ones (62.1), and it depends on two sounds alone, not on the table.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from decar.audio.tables import read_flat
from decar.clustering import l2_normalize
from decar.clustering.base import room
from decar.clustering.nearest import load_faiss
from decar.digests import DamagedError, check_parquet
from decar.errors import SearchError, one_line
from decar.models.embed import standardiser

Measure = Literal["cosine", "centred", "standardised"]
Floats = NDArray[np.float32]

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
        facts: Metadata under the key `decar`: `encoder` (hash), `bundle`, `root`, and `dim` of a reduced encoder; empty
            in a table of another program.
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

    @property
    def root(self) -> Path | None:
        """The folder that relative paths started from when the table was written; None where it does not say."""
        return Path(self.facts["root"]) if self.facts.get("root") else None

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

    def vectors(self) -> NDArray[np.float32]:
        """All embeddings, `(N, D)`, in memory or, above 1 GiB, in a file without a name."""
        out = room(len(self), self.dim)
        for start, block in self.blocks():
            out[start : start + len(block)] = block
        return out

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


@dataclass(frozen=True)
class Neighbours:
    """The rows that a search found, nearest first.

    Attributes:
        rows: `(Q, n)` rows of the table.
        distances: `(Q, n)`, 1 - cosine: 0 the same direction, 1 at right angles, 2 opposite.
    """

    rows: NDArray[np.int64]
    distances: Floats


class Index:
    """Finds the rows of a table whose embeddings are nearest to given ones.

    Args:
        table: An embeddings file, opened.
        measure: Cosine of the vectors as they are; minus the table's mean; or standardised by the table's mean and
            deviation. The latter two read the file once more.

    >>> Index.from_parquet("sounds.parquet").nearest(vectors, 5).rows  # doctest: +SKIP
    """

    def __init__(self, table: EmbeddingTable, measure: Measure = "cosine") -> None:
        if measure not in get_args(Measure):
            raise SearchError(f"measure={measure}: choose one of {', '.join(get_args(Measure))}")
        self.table, self.measure = table, measure
        self._mean, self._scale = np.zeros(table.dim), np.ones(table.dim)
        if measure != "cosine":
            self._mean, scale = standardiser(block for _, block in table.blocks())
            self._scale = scale if measure == "standardised" else self._scale

    @classmethod
    def from_parquet(cls, file: str | Path, measure: Measure = "cosine") -> "Index":
        """Of a file that `decar embed` wrote.

        Raises:
            SearchError: There is no such file, or it is not such a table.
        """
        return cls(EmbeddingTable.open(file), measure)

    def __len__(self) -> int:
        return len(self.table)

    def nearest(self, vectors: Floats, n: int = 10, *, without: Iterable[int | None] = ()) -> Neighbours:
        """The `n` nearest rows to each of `(Q, D)` vectors, exactly; of equally near ones the first rows.

        Args:
            vectors: Embeddings by the encoder that made the table.
            n: How many.
            without: For each vector a row that is not to be found, the sound itself say, or None.

        Raises:
            SearchError: `n` is more than there are, or the vectors are zero, not finite or of another width.
        """
        queries = np.atleast_2d(np.asarray(vectors, np.float32))
        left_out = [*without] or [None] * len(queries)
        self._check(queries, n, spare=int(any(row is not None for row in left_out)))
        prepared, wanted = self._prepare(queries), n + int(any(row is not None for row in left_out))
        nothing = np.flatnonzero(~prepared.any(axis=1))
        if len(nothing):
            raise SearchError(
                f"vector {nothing[0] + 1} of {len(queries)} to search for is zero, and so all rows are equally near to "
                "it: is the sound silent?"
            )
        rows = np.empty((len(queries), 0), np.int64)
        likeness = np.empty((len(queries), 0), np.float32)
        faiss = load_faiss()
        for start, block in self.table.blocks():
            most = min(wanted, len(block))
            like, found = faiss.knn(prepared, self._prepare(block), most, metric=faiss.METRIC_INNER_PRODUCT)
            likeness, rows = np.hstack([likeness, like]), np.hstack([rows, found + start])
            order = np.lexsort((rows, -likeness), axis=-1)[:, :wanted]
            likeness, rows = np.take_along_axis(likeness, order, 1), np.take_along_axis(rows, order, 1)
        kept = [np.flatnonzero(found != (-1 if out is None else out))[:n]
                for found, out in zip(rows, left_out, strict=True)]  # fmt: skip
        rows, likeness = np.take_along_axis(rows, np.stack(kept), 1), np.take_along_axis(likeness, np.stack(kept), 1)
        return Neighbours(rows, np.clip(1 - likeness, 0, 2).astype(np.float32))

    def _check(self, queries: Floats, n: int, spare: int) -> None:
        if not 1 <= n <= len(self) - spare:
            raise SearchError(f"n={n}: {self.table.file} has {len(self) - spare} clips to find; give 1 to that many")
        if queries.shape[1] != self.table.dim:
            raise SearchError(
                f"a vector of {queries.shape[1]} numbers, {self.table.file} has {self.table.dim}: "
                "another encoder made it"
            )
        if not np.isfinite(queries).all():
            raise SearchError("the vector to search for holds NaN or Inf: is the sound damaged?")

    def _prepare(self, vectors: Floats) -> Floats:
        if self.measure != "cosine":
            vectors = ((vectors - self._mean) * self._scale).astype(np.float32)
        return np.ascontiguousarray(l2_normalize(vectors))

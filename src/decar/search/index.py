"""Exact nearest neighbours in a table of embeddings, by faiss, a block of rows at a time.

No index is built and memory holds little more than one block: 200,000 rows of 768 numbers took 3.6 s and 120 MB on one
core. Two million rows of 3,072 are a file of 25 GB, forty times as much time and no more memory; a search reads it once
for all its queries. Cosine of the vectors as they are is the default. On the
bundled sounds it finds as many clips of the same label among the ten nearest (62.7 %, mean of nine label columns) as
centred vectors (62.6) and more than standardised ones (62.1), and it depends on two sounds alone, not on the table.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from decar.clustering import l2_normalize
from decar.clustering.nearest import load_faiss
from decar.errors import SearchError
from decar.models.vectors import standardiser
from decar.search.table import EmbeddingTable

Measure = Literal["cosine", "centred", "standardised"]
Floats = NDArray[np.float32]


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
            SearchError: `n` is more than there are, or the vectors are not finite or of another width.
        """
        queries = np.atleast_2d(np.asarray(vectors, np.float32))
        left_out = [*without] or [None] * len(queries)
        self._check(queries, n, spare=int(any(row is not None for row in left_out)))
        prepared, wanted = self._prepare(queries), n + int(any(row is not None for row in left_out))
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

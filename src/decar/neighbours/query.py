"""Queries of a search: rows of the table, or sound files, which the table's own encoder embeds."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from decar.audio.clips import Windows
from decar.audio.columns import beside_ours
from decar.audio.decode import decode_blocks
from decar.audio.logmel import waveform_to_frames
from decar.audio.samples import Gauge
from decar.errors import AudioError, BundleError, SearchError, is_unicode
from decar.models import Encoder, load_encoder
from decar.models.bundle import REMOTE
from decar.models.other import PREFIXES
from decar.neighbours.index import EmbeddingTable, Index

log = logging.getLogger(__name__)

COLUMNS = ("query", "rank", "distance")  # of a search's result, before those of the table


@dataclass(frozen=True)
class Query:
    """One sound to search for.

    Attributes:
        name: As the user gave it, with its place in the file where the table has several clips of one.
        vector: `(D,)`.
        row: Its row of the table; None for a file.
        origin: Which row or file it is, in words.
    """

    name: str
    vector: NDArray[np.float32]
    row: int | None = None
    origin: str = ""


def find_queries(
    sounds: list[str],
    table: EmbeddingTable,
    bundle: str | Encoder | None = None,
    *,
    in_table: bool = False,
    root: Path | None = None,
    network: Callable[..., Any] | None = None,
) -> list[Query]:
    """A query for each sound, or for each clip of it that the table has.

    A file that exists is what is searched for, also where the table has a row of that name: its sound may be another.
    The row is taken, and needs no encoder, where there is no such file or where `root` shows that both are one file.

    Args:
        sounds: Files, or paths as the table writes them.
        table: The table that is searched.
        bundle: The encoder; None: the one that the table names.
        in_table: Whether all sounds are paths of the table, even where files of that name exist.
        root: Where relative paths of the table start from; None: the root that the table names, if any.
        network: The class of the encoder's network, where it is not one of decar's.

    Raises:
        SearchError: There is no such sound, it cannot be read, or the encoder is not the table's.
    """
    root = root or table.root
    paths = table.rows["path"].astype(str).to_numpy()
    places = {sound: np.flatnonzero(paths == sound) for sound in sounds}
    files = [sound for sound in sounds if not in_table and _is_file(sound, root if len(places[sound]) else None)]
    for sound in sounds:
        if not is_unicode(sound):
            raise SearchError(f"{sound}: the name is not valid Unicode, which no table can hold: rename the file")
        if sound not in files and not len(places[sound]):
            what = "no path of" if in_table else "no such file, and no path of"
            raise SearchError(f"{sound}: {what} {table.file} (such as {paths[0]})")
    if bundle is not None or files:
        encoder = _encoder_of(table, bundle, network)
    made = {sound: [_file_query(sound, encoder, table, len(places[sound]))] for sound in files}
    rows = np.concatenate([np.empty(0, np.int64), *(places[sound] for sound in sounds if sound not in files)])
    vectors = dict(zip(rows.tolist(), table.take(rows), strict=True)) if len(rows) else {}
    for sound in sounds:
        if sound not in files:
            made[sound] = [
                Query(name, vectors[row], row, f"row {row + 1} of {table.file}")
                for row, name in _names(table, places[sound].tolist()).items()
            ]
    return [query for sound in sounds for query in made[sound]]


def _is_file(sound: str, root: Path | None) -> bool:
    """Whether a file of this name exists that is not known to be the one under `root`."""
    file = Path(sound)
    return file.is_file() and not (root is not None and (root / sound).is_file() and file.samefile(root / sound))


def _file_query(sound: str, encoder: Encoder, table: EmbeddingTable, n_rows: int) -> Query:
    """A file to search for; the origin mentions rows of the same name."""
    also = f", not the row of {table.file}: pass --row for that" if n_rows else ""
    return Query(sound, _embed(encoder, sound), None, f"the file {Path(sound).absolute()}{also}")


def _names(table: EmbeddingTable, rows: list[int]) -> dict[int, str]:
    """A distinct name for each row of one file; results are keyed by it."""
    names = {row: _named(table, row) for row in rows}
    several = Counter(names.values())
    return {row: f"{name} (row {row + 1})" if several[name] > 1 else name for row, name in names.items()}


def _named(table: EmbeddingTable, row: int) -> str:
    clip = table.rows.iloc[row]
    start = clip.get("start")
    return f"{clip['path']} ({start:g} s)" if isinstance(start, float) and start > 0 else str(clip["path"])


def _encoder_of(table: EmbeddingTable, bundle: str | Encoder | None, network: Callable[..., Any] | None) -> Encoder:
    """The encoder that made the table; an error for another one."""
    if isinstance(bundle, Encoder):
        return _checked(bundle, table, "the encoder")
    path = bundle or table.facts.get("bundle")
    if not path or path in ("random", "logmel"):
        raise SearchError(
            f"{table.file} does not say which bundle made it"
            + (f" (it says '{path}')" if path else "")
            + ": pass --bundle, or search for a path of the table"
        )
    if bundle is None and str(path).startswith((*REMOTE, *PREFIXES)):
        raise SearchError(
            f"{table.file} was made by {path}: nothing is downloaded or imported because a file says so; if you trust "
            f"it, pass --bundle {path}"
        )
    try:
        encoder = load_encoder(str(path), dim=table.facts.get("dim"), network=network)
    except BundleError as error:
        raise SearchError(f"{error} (the bundle that made {table.file}; pass --bundle)") from error
    return _checked(encoder, table, str(path))


def _checked(encoder: Encoder, table: EmbeddingTable, name: str) -> Encoder:
    """The encoder, if the table is of it or does not say."""
    wanted = table.facts.get("encoder")
    if wanted and encoder.hash() != wanted:
        raise SearchError(
            f"{name} is another encoder ({encoder.hash()[:16]}) than the one that made {table.file} ({wanted[:16]}): "
            "pass the right one as --bundle, or embed the sounds anew"
        )
    return encoder


def _embed(encoder: Encoder, sound: str) -> NDArray[np.float32]:
    """The vector that `Encoder.embed` gives; of a long sound no more than its log-mel is in memory."""
    gauge, log_mel = Gauge(), encoder.frontend.transform()

    def blocks() -> Iterator[NDArray[np.float32]]:
        yield from map(gauge.add, decode_blocks(sound, sample_rate=encoder.sample_rate))
        yield np.zeros(max(0, encoder.frontend.win_length - gauge.samples), np.float32)  # less than a frame

    rows = Windows(None, None, encoder.frontend, encoder.max_frames).rows(blocks())
    try:
        mel = np.concatenate([waveform_to_frames(log_mel, piece) for row in rows for piece in row])
    except AudioError as error:
        raise SearchError(f"{sound}: cannot be searched for, {error}") from error
    if not gauge.peak > 0:
        raise SearchError(f"{sound}: cannot be searched for, it is silent or empty")
    vector: NDArray[np.float32] = encoder.embed_logmels([mel])[0].numpy()
    return vector


def neighbour_table(index: Index, queries: list[Query], n: int) -> pd.DataFrame:
    """A row for each query (`rank` 0) and for each clip found: `query`, `rank`, `distance`, then the table's row.

    Columns of those three names in the table, which an embedded result of a search has, are called `table_query` and
    so on.
    """
    vectors = np.stack([query.vector for query in queries])
    nearest = index.nearest(vectors, n, without=[query.row for query in queries])
    table, parts = beside_ours(index.table.rows, COLUMNS), []
    for query, rows, distances in zip(queries, nearest.rows, nearest.distances, strict=True):
        itself = pd.DataFrame([{"path": str(Path(query.name).absolute())}])
        if query.row is not None:
            itself = table.iloc[[query.row]]
        clips = pd.concat([itself, table.iloc[rows]], ignore_index=True)
        clips.insert(0, "query", query.name)
        clips.insert(1, "rank", np.arange(len(clips)))
        clips.insert(2, "distance", np.concatenate([[0.0], distances]).astype(np.float32))
        parts.append(clips)
    found: pd.DataFrame = pd.concat(parts, ignore_index=True)
    return found

"""What is searched for: rows of the table, or sound files, which the table's own encoder embeds."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from decar.audio import decode
from decar.errors import AudioError, BundleError, SearchError
from decar.models import Encoder, load_encoder
from decar.models.encode import embed_long
from decar.models.hub import PREFIX
from decar.search.table import EmbeddingTable


@dataclass(frozen=True)
class Query:
    """One sound to search for.

    Attributes:
        name: As it was asked for, with its place in the file where the table has several clips of one.
        vector: `(D,)`.
        row: Its row of the table; None for a file from elsewhere.
    """

    name: str
    vector: NDArray[np.float32]
    row: int | None = None


def find_queries(sounds: list[str], table: EmbeddingTable, bundle: str | None = None) -> list[Query]:
    """A query for each sound, or for each clip of it that the table has.

    Args:
        sounds: Paths as the table writes them, which need no encoder; else files.
        table: Where they are going to be looked for.
        bundle: The encoder; None: the one that the table was made by, as it says.

    Raises:
        SearchError: There is no such sound, it cannot be read, or the encoder is not the table's.
    """
    in_table = {sound: np.flatnonzero(table.rows["path"].astype(str) == sound) for sound in sounds}
    files = [sound for sound in sounds if not len(in_table[sound])]
    for sound in files:
        if not Path(sound).is_file():
            raise SearchError(f"{sound}: no such file, and no path of {table.file} (such as {table.rows['path'][0]})")
    if bundle is not None or files:
        encoder = _encoder_of(table, bundle)
    made = {sound: [Query(sound, _embed(encoder, sound))] for sound in files}
    rows = np.concatenate([np.empty(0, np.int64), *in_table.values()])
    vectors = dict(zip(rows.tolist(), table.take(rows), strict=True)) if len(rows) else {}
    for sound, places in in_table.items():
        if len(places):
            made[sound] = [Query(_named(table, row), vectors[row], row) for row in places.tolist()]
    return [query for sound in sounds for query in made[sound]]


def _named(table: EmbeddingTable, row: int) -> str:
    clip = table.rows.iloc[row]
    start = clip.get("start")
    return f"{clip['path']} ({start:g} s)" if isinstance(start, float) and start > 0 else str(clip["path"])


def _encoder_of(table: EmbeddingTable, bundle: str | None) -> Encoder:
    """The encoder that made the table, or an error that says how the two differ."""
    wanted, path = table.facts.get("encoder"), bundle or table.facts.get("bundle")
    if not path or path in ("random", "logmel"):
        raise SearchError(
            f"{table.file} does not say which bundle made it"
            + (f" (it says '{path}')" if path else "")
            + ": pass --bundle, or search for a path of the table"
        )
    if bundle is None and str(path).startswith(PREFIX):
        raise SearchError(
            f"{table.file} was made by {path}: nothing is downloaded because a file says so; pass --bundle {path}"
        )
    try:
        encoder = load_encoder(str(path))
    except BundleError as error:
        raise SearchError(f"{error} (the bundle that made {table.file}; pass --bundle)") from error
    if wanted and encoder.hash() != wanted:
        raise SearchError(
            f"{path} is another encoder ({encoder.hash()[:16]}) than the one that made {table.file} ({wanted[:16]}): "
            "pass the right one as --bundle, or embed the sounds anew"
        )
    return encoder


def _embed(encoder: Encoder, sound: str) -> NDArray[np.float32]:
    try:
        waveform = decode(sound, sample_rate=encoder.sample_rate)
    except AudioError as error:
        raise SearchError(f"{sound}: cannot be searched for, {error}") from error
    if not len(waveform) or not np.abs(waveform).max() > 0:
        raise SearchError(f"{sound}: cannot be searched for, it is silent or empty")
    return embed_long(encoder, waveform)

"""The clusters of an embedding as files: those of `decar cluster`, and those that every run ends with."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from decar.audio import LogMelStore
from decar.audio.columns import beside_ours
from decar.audio.tables import read_text_table
from decar.clustering import Clusters, Placed, make_clusters
from decar.errors import DecarError, one_line
from decar.files import whole, write_csv
from decar.models import Encoder, embed_store
from decar.report.clips import sample

log = logging.getLogger(__name__)

MODEL, TABLE = "clusters.npz", "clusters.csv"
PLACE = ("path", "start", "duration")
FOUND = ("cluster", "distance", "novelty")
MOST = 20_000  # clips of a run that are embedded once more for its last clustering; of more an even sample


def cluster_store(
    encoder: Encoder, store: LogMelStore, *, seed: int, device: str, progress: bool
) -> tuple[NDArray[np.float32], Clusters, Placed]:
    """Embed the clips of a store and cluster them by K-Means, with `k=auto`.

    Returns:
        `(N, D)` the final embedding of the clips; the clusters, to be kept; which cluster each clip is in.

    Raises:
        ClusteringError: There is one clip only, or the embedding is not finite.
    """
    vectors = embed_store(encoder, store, device=device, progress=progress)
    facts = {"encoder": encoder.hash(), "bundle": "", "segment": "none"}  # no bundle: the one beside the file
    recordings = store.manifest.table["path"].to_numpy()
    return vectors, *make_clusters(vectors, recordings, seed=seed, facts=facts)


def few(store: LogMelStore, seed: int) -> NDArray[np.int64]:
    """Which clips of a store are clustered at the end."""
    return sample(len(store), seed, MOST)


def with_places(store: LogMelStore) -> pd.DataFrame:
    """The table of the clips of a store, with `start` and `duration` (s) of each."""
    starts = [start for start, _ in store.manifest.stretches]
    return store.manifest.table.assign(start=starts, duration=store.seconds)


def write_clusters(out: Path, table: pd.DataFrame, placed: Placed, model: Clusters) -> pd.DataFrame:
    """Write `clusters.csv`, a row a clip, and `clusters.npz`, which takes new sounds; returns the table.

    Args:
        out: Folder.
        table: The `N` clips, with `path`, `start` and `duration` (s); its other columns are kept, those that are called
            as what is written here with `table_` before their names.
        placed: Their clusters.
        model: All clusters.

    Raises:
        OSError: A file cannot be written.
    """
    others = beside_ours(table.drop(columns=[*PLACE]), FOUND)
    found = table[[*PLACE]].assign(
        cluster=placed.labels, distance=placed.distance.round(4), novelty=placed.novelty.round(3)
    )
    found = pd.concat([found, others], axis=1)
    model.save(out / MODEL)
    with whole(out / TABLE) as part:
        write_csv(found, part)
    return found


def read_clusters(folder: Path, table: pd.DataFrame, encoder: str) -> pd.DataFrame:
    """What `write_clusters` wrote about some clips, and about no others: the table with the columns that it lacked.

    Args:
        folder: Where `clusters.csv` and `clusters.npz` lie.
        table: The clips, with `path` and `start` (s), in the order of the file.
        encoder: The hash of the encoder that embedded them.

    Raises:
        DecarError: A file is missing or damaged, or is about other clips or another encoder.
    """
    Clusters.load(folder / MODEL).require_encoder(encoder)
    found, _ = read_text_table(folder / TABLE, lambda names: "path" in names)
    try:
        starts = found["start"].astype(float)
        if found["path"].tolist() != table["path"].tolist() or not np.allclose(starts, table["start"], atol=1e-3):
            raise ValueError(f"its {len(found)} rows are not the {len(table)} embedded clips in their order")
        found = found.astype({"cluster": np.int64})
        found[[*FOUND[1:]]] = found[[*FOUND[1:]]].replace("", np.nan).astype(float)  # noise has no distance
    except (KeyError, ValueError) as error:
        again = "make it again with decar cluster, or decar report for a run"
        raise DecarError(f"{folder / TABLE}: {one_line(error)}; {again}") from error
    table = table.drop(columns=[*FOUND], errors="ignore")  # the source's own, which the file has as `table_…`
    return table.join(found[[name for name in found if name not in table]])

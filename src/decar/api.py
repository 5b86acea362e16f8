"""Python in a few lines: `decar.train`, `decar.embed`, `decar.cluster`, `decar.search`.

The functions do what the commands of the same name do, and return tables. `train` writes a folder, and `embed` a file
if one is given; the others write nothing.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pandas as pd

from decar.audio import Manifest
from decar.audio.clips import Segment, as_segment
from decar.audio.columns import beside_ours
from decar.audio.containers import folder_of
from decar.audio.remote import fetched
from decar.audio.source import read_source
from decar.clustering import Clusters, make_clusters
from decar.clustering.model import Method
from decar.embedder import Embedded, Embedder
from decar.errors import ConfigError, TrainingError
from decar.models import load_encoder
from decar.models.bundle import exact_name
from decar.report.final import FOUND, MODEL, TABLE

if TYPE_CHECKING:
    from decar.models import Encoder
    from decar.neighbours.index import Measure

Source = str | Path | Manifest | Sequence[str | Path]


@dataclass(frozen=True)
class Run:
    """The folder of a training that has ended.

    Attributes:
        folder: Where it lies.
    """

    folder: Path

    @property
    def encoder(self) -> Encoder:
        """The trained encoder."""
        return load_encoder(self.folder)

    @property
    def clusters(self) -> pd.DataFrame:
        """A row a clip: `path`, `start`, `duration` (s), `cluster`, `distance`, `novelty`, and what else is known."""
        return pd.read_csv(self.folder / TABLE)

    @property
    def report(self) -> Path:
        """The page of the run."""
        return self.folder / "report.html"


def train(
    folder: str | Path, *options: str, out: str | Path | None = None, budget: str | None = None, seed: int = 0
) -> Run:
    """Train an encoder on a folder of sounds, as `python train.py data=folder data.root=FOLDER`.

    Training runs in a process of its own, whose log is shown. It continues where an earlier call stopped, if `out` is
    the same.

    Args:
        folder: The sounds.
        options: More options of `train.py`, such as `"k=64"`.
        out: Folder of the run; None: `runs/pretrain/FOLDER`.
        budget: Time for training, such as `"10min"`; None: as long as the recipe takes.
        seed: Of all random numbers.

    Raises:
        TrainingError: The training failed; its log says why.
    """
    from decar.cli.config import hydra_value

    run = Path(out) if out else Path("runs") / "pretrain" / Path(folder).resolve().name
    values = {"data.root": str(Path(folder).resolve()), "hydra.run.dir": str(run.resolve())}
    words = ["data=folder", *(f"{key}={hydra_value(value)}" for key, value in values.items()), f"seed={seed}"]
    words += [*([f"budget={budget}"] if budget else []), "resume=auto", *options]
    done = subprocess.run([sys.executable, "-m", "decar.cli.train", *words], check=False)
    if done.returncode:
        raise TrainingError(f"{run}: the training ended with status {done.returncode}; its last lines say why")
    return Run(run)


def embed(
    source: Source,
    bundle: str | Path | Encoder | None = None,
    *,
    segment: Segment | None = None,
    windows: float | None = None,
    fetch: bool = False,
    device: str | None = None,
    out: str | Path | None = None,
    progress: bool = True,
) -> Embedded:
    """Embeddings of sounds.

    Args:
        source: What `decar embed` takes: a folder, archive, table, Parquet with the sounds in it, pattern, file or
            address; or a list of files, or a `Manifest`.
        bundle: An encoder, a run's folder, a bundle; None: the encoder that comes with decar.
        segment: Cut long recordings into segments, a row each; see `decar.embedder.Windows`.
        windows: Seconds: a row for each such window.
        fetch: Whether to fetch what is at addresses, such as https://… or s3://…; otherwise they are refused.
        device: Where the network runs; None: on a GPU if there is one.
        out: Also write them to this .parquet or .npy file, or address of object storage. A call that was stopped
            continues where it was.
        progress: Show progress.

    Returns:
        `table` with a row an embedding, `vectors` `(R, D)`, and `bad`, the clips without one.

    Raises:
        DecarError: There is no such source or encoder, an embedding is not finite, or `out` cannot be written.
    """
    clips = _clips(source, fetch, progress)
    embedder = Embedder(bundle, segment=segment, windows=windows, device=device)
    if out is None:
        return embedder.files(clips, progress=progress)
    name = exact_name(str(bundle or "small")) if bundle is None or isinstance(bundle, str | Path) else ""
    return embedder.write(clips, out, name=name, progress=progress)


def cluster(
    source: Source,
    bundle: str | Path | Encoder | None = None,
    *,
    k: int | Literal["auto"] = "auto",
    clusterer: Method = "kmeans",
    segment: Segment | None = None,
    like: str | Path | Clusters | None = None,
    seed: int = 0,
    fetch: bool = False,
    device: str | None = None,
    progress: bool = True,
) -> tuple[pd.DataFrame, Clusters]:
    """Clusters of recordings, without training; nothing is written.

    Args:
        source: As of `embed`.
        bundle: As of `embed`.
        k: Number of clusters for `kmeans`; `auto`: see `decar.clustering.choose_k`.
        clusterer: `kmeans`, `pic` or `hdbscan`.
        segment: As of `embed`; None: as the clusters of `like` were made, else `auto`.
        like: Put the sounds into these clusters; a folder or file of `decar cluster`, or what this function returned.
        seed: Of all that is random.
        fetch: As of `embed`.
        device: As of `embed`.
        progress: Show progress.

    Returns:
        A row a segment: `path`, `start`, `duration` (s), `cluster` (-1: noise), `distance`, `novelty`, and the columns
        of the source; and the clusters, which have `place` and `save`.

    Raises:
        ClusteringError: There are too few sounds, or those of `like` are of another encoder.
        ConfigError: `k` or `clusterer` is given with `like`, or `k` with a clusterer that finds it itself.
    """
    model = like if like is None or isinstance(like, Clusters) else Clusters.load(_model_of(Path(like)))
    if model is not None and (k != "auto" or clusterer != "kmeans"):
        raise ConfigError(f"k={k}, clusterer={clusterer}: like takes the clusters that there are; leave them out")
    encoder = load_encoder(bundle) if bundle is None or isinstance(bundle, str | Path) else bundle
    if segment is None:
        segment = model.facts.get("segment", "auto") if model else "auto"
    segment = as_segment(segment, "segment")  # as a float, which --like expects
    made = embed(source, encoder, segment=segment, fetch=fetch, device=device, progress=progress)
    if model is None:
        facts = {"encoder": encoder.hash(), "bundle": exact_name(str(bundle or "small")), "segment": segment}
        recordings = made.table["path"].to_numpy()
        model, placed = make_clusters(made.vectors, recordings, method=clusterer, k=k, seed=seed, facts=facts)
    else:
        model.require_encoder(encoder.hash())
        placed = model.place(made.vectors)
    table = beside_ours(made.table, FOUND)
    return table.assign(cluster=placed.labels, distance=placed.distance, novelty=placed.novelty), model


def search(
    sounds: str | Path | Sequence[str | Path],
    table: str | Path,
    n: int = 10,
    bundle: str | Path | Encoder | None = None,
    *,
    measure: Measure = "cosine",
    root: str | Path | None = None,
) -> pd.DataFrame:
    """The clips of a table of embeddings that are most similar to some sounds.

    Args:
        sounds: A file, or a path of the table; or a list of them.
        table: A .parquet file that `decar embed`, or `embed` with `out`, wrote.
        n: How many for each sound.
        bundle: The encoder that made the table; None: the one that the table names.
        measure: `cosine` of the embeddings as they are, `centred` on their mean, or `standardised`.
        root: The folder or archive that relative paths of the table start from; None: the folder that it names.

    Returns:
        For each sound a row of rank 0, the sound itself, and `n` rows: `query`, `rank`, `distance` (1 - cosine), `path`
        and the other columns of the table.

    Raises:
        SearchError: There is no such sound or table, or it was made by another encoder.
    """
    from decar.neighbours.index import Index
    from decar.neighbours.query import find_queries, neighbour_table

    names = [sounds] if isinstance(sounds, str | Path) else sounds
    index = Index.from_parquet(table, measure)
    encoder, start = str(bundle) if isinstance(bundle, Path) else bundle, None if root is None else folder_of(root)
    queries = find_queries(list(dict.fromkeys(map(str, names))), index.table, encoder, root=start)
    return neighbour_table(index, queries, n)


def _clips(source: Source, fetch: bool, progress: bool) -> Manifest:
    if isinstance(source, str | Path):
        return read_source(source, fetch=fetch, later=True, progress=progress)
    if not isinstance(source, Manifest):
        source = Manifest(pd.DataFrame({"path": [str(path) for path in source]}), Path.cwd())
    return fetched(source, progress=progress) if fetch else source


def _model_of(place: Path) -> Path:
    return place / MODEL if place.is_dir() else place

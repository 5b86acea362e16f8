"""Clusters that are kept: made once from the embeddings of some clips, later given to new sounds.

Letters: `N` clips, `D` numbers of an embedding, `d` of a whitened one, `K` clusters.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from decar.clustering.base import ROWS_AT_ONCE, require_at_least_one, room, row_blocks
from decar.clustering.choose import choose_k
from decar.clustering.kmeans import KMeans
from decar.clustering.pic import PIC
from decar.clustering.whiten import Whitening, l2_normalize
from decar.digests import check_zip, seal_zip
from decar.errors import ClusteringError, ConfigError
from decar.files import whole

Method = Literal["kmeans", "pic", "hdbscan"]

NOISE = -1  # the label of clips that HDBSCAN puts into no cluster
KEPT = 20_000  # clips that new sounds are compared with; of more an even sample
MIN_SIZE = 5  # clips of the smallest cluster that HDBSCAN makes
FORMAT = 1
MOST_BYTES = 2**30  # of a file's arrays; 20,000 clips of 1,000 numbers are 80 MB
MAX_POINTS = 2_000_000  # as `conf/clusterer/kmeans.yaml`
_ROWS_AT_ONCE = 1024
_PRODUCTS = 2**27  # of points and centres at once, half a gigabyte

Labels = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Placed:
    """Where clips are among clusters.

    Attributes:
        labels: `(N,)`; -1 for noise.
        distance: `(N,)` cosine distance (0 to 2) to the mean direction of the clip's cluster; NaN for noise.
        novelty: `(N,)` cosine distance to the nearest known clip of another recording, in units of the median of
            the clips that the clusters were made from: 1 is usual, 2 is twice as far from everything known.
    """

    labels: Labels
    distance: Floats
    novelty: Floats


@dataclass(frozen=True)
class Clusters:
    """What `make_clusters` has learned.

    Attributes:
        whitening: What vectors are projected by before they are scaled to length 1.
        centres: `(K, d)` float32, the mean of the whitened members of each cluster.
        known: `(n, d)` float32, whitened clips of length 1, at most 20,000 of those that the clusters were made from.
        labels: `(n,)` their clusters.
        scale: The median novelty of the clips that the clusters were made from, a cosine distance.
        method: How they were made. K-Means gives a new clip the cluster of the nearest centre, the others that of the
            nearest known clip.
        facts: More about them, as plain values: which encoder, how recordings were cut.
    """

    whitening: Whitening
    centres: Floats
    known: Floats
    labels: Labels
    scale: float
    method: str
    facts: Mapping[str, Any]

    def place(self, vectors: NDArray[Any]) -> Placed:
        """Clusters of new clips.

        Args:
            vectors: `(N, D)` embeddings by the same encoder.

        Raises:
            ClusteringError: They are of another width, or not finite.
        """
        wide = self.whitening.projection.shape[0]
        if np.ndim(vectors) != 2 or np.shape(vectors)[1] != wide:
            raise ClusteringError(
                f"embeddings of shape {np.shape(vectors)}, the clusters were made of {wide} numbers a clip: embed the "
                "sounds with the same encoder"
            )
        unit = self.whitening.unit(vectors, room(len(vectors), self.whitening.projection.shape[1]))
        likeness, nearest = _nearest(unit, self.known)
        labels = _nearest_centre(unit, self.centres) if self.method == "kmeans" else self.labels[nearest]
        return Placed(labels, _distance(unit, labels, self.centres), (1 - likeness) / np.float32(self.scale))

    def require_encoder(self, encoder: str) -> None:
        """Refuse vectors of another encoder, by its hash.

        Raises:
            ClusteringError: The clusters were made with another one.
        """
        wanted = str(self.facts.get("encoder"))
        if wanted != encoder:
            raise ClusteringError(
                f"the clusters were made with another encoder ({wanted[:16]}) than this one ({encoder[:16]}): pass the "
                "one that made them as bundle"
            )

    def save(self, file: str | Path) -> None:
        """Write them as `.npz` with a checksum, whole or not at all.

        Raises:
            OSError: It cannot be written.
        """
        about = {"format": FORMAT, "method": self.method, "scale": self.scale, "facts": dict(self.facts)}
        with whole(file) as part, part.open("w+b") as out:
            np.savez(
                out, mean=self.whitening.mean, projection=self.whitening.projection, centres=self.centres,
                known=self.known, labels=self.labels, about=np.array(json.dumps(about, sort_keys=True)),
            )  # fmt: skip
            seal_zip(out)

    @classmethod
    def load(cls, file: str | Path) -> Clusters:
        """Read what `save` wrote. The file may be somebody else's: nothing in it is run.

        Raises:
            ClusteringError: It is missing, damaged, or something else.
        """
        try:
            with open(file, "rb") as source:
                sealed = check_zip(source)
                with zipfile.ZipFile(source) as records:
                    size = sum(record.file_size for record in records.infolist())
                    packed = any(record.compress_type != zipfile.ZIP_STORED for record in records.infolist())
                if not sealed or packed or size > MOST_BYTES:
                    raise ValueError("it has no checksum, or is not as decar writes it")
                source.seek(0)
                with np.load(source, allow_pickle=False) as arrays:
                    found = {name: arrays[name] for name in ("mean", "projection", "centres", "known", "labels")}
                    about = json.loads(str(arrays["about"]))
            made = cls(
                Whitening(found["mean"], found["projection"]), found["centres"], found["known"], found["labels"],
                float(about["scale"]), str(about["method"]), dict(about["facts"]),
            )  # fmt: skip
            made._check(about["format"])
        except Exception as error:  # zipfile, numpy and json raise a dozen kinds for what is damaged
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ClusteringError(
                f"{file}: not readable as clusters ({reason}); `decar cluster SOURCE` writes clusters.npz, and "
                "`decar report RUN` that of a run"
            ) from error
        return made

    def _check(self, version: object) -> None:
        if version != FORMAT:
            raise ValueError(f"format {version}, this decar knows {FORMAT}")
        wide, d = self.whitening.projection.shape
        shapes = (self.whitening.mean.shape, self.centres.shape[1:], self.known.shape[1:], self.labels.shape)
        if shapes != ((wide,), (d,), (d,), (len(self.known),)) or not len(self.known) or not len(self.centres):
            raise ValueError("its arrays do not fit one another")
        if self.labels.dtype != np.int64 or self.labels.min() < NOISE or self.labels.max() >= len(self.centres):
            raise ValueError("its labels are no clusters")
        arrays = (self.whitening.mean, self.whitening.projection, self.centres, self.known)
        if not all(array.dtype.kind == "f" and np.isfinite(array).all() for array in arrays) or not self.scale > 0:
            raise ValueError("it holds NaN or Inf")
        if self.method not in get_args(Method):
            raise ValueError(f"made by {self.method}, which is unknown")


def make_clusters(
    vectors: NDArray[Any],
    recordings: NDArray[Any],
    *,
    method: Method = "kmeans",
    k: int | Literal["auto"] = "auto",
    dim: int = 128,
    seed: int = 0,
    max_points: int = MAX_POINTS,
    facts: Mapping[str, Any] | None = None,
    advance: Callable[[int], object] = lambda _: None,
) -> tuple[Clusters, Placed]:
    """Whiten and cluster embeddings. Cluster 0 is the largest.

    Args:
        vectors: `(N, D)`.
        recordings: `(N,)`, which recording each clip is of: novelty is measured to other recordings.
        method: `kmeans`, `pic` or `hdbscan`. The last two find the number of clusters themselves; `hdbscan` has noise.
        k: Clusters of K-Means; `auto`: see `choose_k`.
        dim: Whitened directions at most; fewer than 30 dim clips get fewer (`affordable_dim`).
        seed: Of all that is random.
        max_points: K-Means chooses k and learns centres from at most so many clips, drawn by the seed; all are then
            put into the nearest cluster, a block at a time.
        facts: To be kept with the clusters.
        advance: See `choose_k`.

    Raises:
        ClusteringError: There are too few clips for the clusters that are asked for, or the vectors are unusable.
        ConfigError: `k` is given to a method that finds it itself.
    """
    if method not in get_args(Method):
        raise ClusteringError(f"{method} is no way to cluster: choose one of {', '.join(get_args(Method))}")
    if method != "kmeans" and k != "auto":
        raise ConfigError(f"k={k}: {method} finds the number of clusters itself; leave it out")
    if len(vectors) < 2:
        raise ClusteringError(f"{len(vectors)} clip: nothing to cluster, give at least two")
    whitening = Whitening.fit(vectors, dim)
    unit = whitening.unit(vectors, room(len(vectors), whitening.projection.shape[1]))
    if method == "kmeans":
        if k != "auto":
            require_at_least_one(k=k)
            if k > max_points:
                raise ClusteringError(f"k={k} is more than max_points={max_points}: raise that, or lower k")
        some = KMeans(seed=seed, max_points=max_points).sample(len(unit))
        points = unit if some is None else unit[some]
        number = choose_k(points, seed, advance, len(unit)) if k == "auto" else k
        centres = KMeans(number, n_init="auto", seed=seed).fit(points).points
        order = _by_size(_nearest_centre(unit, centres))  # without those that are empty
        centres = centres[order]
        labels = _nearest_centre(unit, centres)
    else:
        found = PIC(seed=seed).fit_predict(unit).labels if method == "pic" else hdbscan(unit)
        labels = np.full(len(unit), NOISE)
        for number, old in enumerate(_by_size(found)):
            labels[found == old] = number
        centres = _means(unit, labels)
    kept = _sample(len(unit), seed)
    codes = np.unique(np.asarray(recordings), return_inverse=True)[1]
    likeness, _ = _nearest(unit, unit[kept], codes, codes[kept], kept)
    apart = 1 - likeness
    scale = float(np.median(apart)) or float(apart.mean()) or 1.0  # duplicates of everything: any scale will do
    made = Clusters(whitening, centres, unit[kept], labels[kept], scale, method, dict(facts or {}))
    return made, Placed(labels, _distance(unit, labels, centres), apart / np.float32(scale))


def hdbscan(points: Floats, min_size: int = MIN_SIZE) -> Labels:
    """HDBSCAN (Campello et al., 2013) by scikit-learn: clusters of at least `min_size` clips; -1 is noise.

    Raises:
        ClusteringError: There are fewer points than that, or all of them are noise.
    """
    from sklearn.cluster import HDBSCAN

    if len(points) < min_size:
        raise ClusteringError(f"{len(points)} clips, HDBSCAN makes clusters of {min_size}: add sounds, or use kmeans")
    labels: Labels = HDBSCAN(min_cluster_size=min_size, copy=True).fit_predict(points).astype(np.int64)
    if labels.max() < 0:
        raise ClusteringError(f"HDBSCAN finds no cluster in {len(points)} clips, only noise: use kmeans or pic")
    return labels


def _by_size(labels: Labels) -> Labels:
    """The labels that occur but for noise, the most frequent first."""
    counts = np.bincount(labels[labels != NOISE])
    order: Labels = np.argsort(-counts, kind="stable")
    return order[counts[order] > 0]


def _means(unit: Floats, labels: Labels) -> Floats:
    """`(K, d)` means of the members; noise is in none."""
    sums, counts = np.zeros((int(labels.max()) + 1, unit.shape[1])), np.bincount(labels[labels >= 0])
    np.add.at(sums, labels[labels >= 0], unit[labels >= 0])
    means: Floats = (sums / counts[:, None]).astype(np.float32)
    return means


def _nearest_centre(unit: Floats, centres: Floats) -> Labels:
    half = 0.5 * np.einsum("ij,ij->i", centres, centres)
    size = min(ROWS_AT_ONCE, max(_PRODUCTS // len(centres), 1))
    return np.concatenate([(unit[rows] @ centres.T - half).argmax(axis=1) for rows in row_blocks(len(unit), size)])


def _distance(unit: Floats, labels: Labels, centres: Floats) -> Floats:
    directions = l2_normalize(centres)
    found = np.empty(len(unit), np.float32)
    for rows in row_blocks(len(unit), ROWS_AT_ONCE):
        found[rows] = (1 - np.einsum("ij,ij->i", unit[rows], directions[labels[rows]])).clip(0, 2)
    found[labels == NOISE] = np.nan
    return found


def _sample(n: int, seed: int) -> Labels:
    if n <= KEPT:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, KEPT, replace=False))


def _nearest(
    unit: Floats,
    known: Floats,
    recordings: Labels | None = None,
    known_recordings: Labels | None = None,
    own: Labels | None = None,
) -> tuple[Floats, Labels]:
    """The cosine to the nearest known clip, and which it is, each `(N,)`.

    Args:
        unit: `(N, d)` rows of length 1.
        known: `(n, d)`, rows of length 1.
        recordings: `(N,)`; clips of the same recording are not compared, if there is another.
        known_recordings: `(n,)`.
        own: `(n,)`, which of `unit` the known clips are; none is compared with itself.
    """
    likeness, nearest = np.empty(len(unit), np.float32), np.empty(len(unit), np.int64)
    apart = recordings is not None and known_recordings is not None and len(np.unique(known_recordings)) > 1
    for rows in row_blocks(len(unit), _ROWS_AT_ONCE):
        cosine = unit[rows] @ known.T
        if apart:
            cosine[recordings[rows, None] == known_recordings] = -np.inf  # type: ignore[index]
        elif own is not None:
            cosine[np.arange(rows.start, rows.stop)[:, None] == own] = -np.inf
        nearest[rows] = cosine.argmax(axis=1)
        likeness[rows] = np.take_along_axis(cosine, nearest[rows, None], 1)[:, 0]
    return likeness.clip(-1, 1), nearest

"""Where the `(N, H)` pseudo-labels of an epoch come from, and when they are renewed.

The paper clusters the network's own vectors at the start of every epoch: `NetworkLabels`. Vectors of an untrained
network carry little, so labels can start from plain descriptors of the sound (`DescriptorLabels`), which are clustered
only once; `BothLabels` starts with those and adds clusterings of the network's vectors later. An epoch is the distance
between two clusterings; the data module sets its number of steps.

To add a source of your own, write a class with the members of `LabelSource` and name it in the configuration
(`labels._target_=mymodule.MyLabels`).
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from decar.audio import LogMelStore
from decar.audio.descriptors import describe
from decar.clustering import Assignment, Centres, Clusterer, KMeans, Whitening, affordable_dim, nmi, prepare, whiten
from decar.clustering.base import row_blocks
from decar.clustering.stats import cluster_sizes, effective_rank, entropy
from decar.clustering.whiten import CLIPS_PER_DIM
from decar.errors import ClusteringError, ConfigError, check_whole
from decar.pretrain.ranks import on_rank_zero
from decar.pretrain.sampler import Stream, derive_seed
from decar.pretrain.vectors import Floats, Vectors

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EpochLabels:
    """The pseudo-labels that one epoch is trained on.

    Attributes:
        labels: `(N, H)` int64, one column per clustering whose labels are known for all clips.
        sizes: Number of clusters of each clustering: the widths of the heads.
        epoch: The epoch they are for.
        health: Logged figures: number of clusters, entropy, effective rank, and `nmi` to the previous assignment where
            both were clustered for their own epoch.
        kept: The first `kept` columns are those of the previous epoch; their heads are not reset.
        views: Crops of each clip in a batch.
        sample: `(n, 2)` int64, clips and their clusters, where only those of a sample are known.
    """

    labels: NDArray[np.int64]
    sizes: list[int]
    epoch: int
    health: dict[str, float] = field(default_factory=dict)
    kept: int = 0
    views: int = 1
    sample: NDArray[np.int64] | None = None

    def again(self, epoch: int) -> "EpochLabels":
        """The same labels for another epoch; no head is reset."""
        return replace(self, epoch=epoch, kept=len(self.sizes))

    def last(self) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
        """The last clustering, the network's own where there is one: clips `(n,)`, their clusters `(n,)`, and `k`."""
        if self.sample is not None:
            return self.sample[:, 0], self.sample[:, 1], self.sizes[-1]
        return np.arange(len(self.labels)), self.labels[:, -1], self.sizes[-1]


@dataclass(frozen=True)
class Situation:
    """What a source can use beside the network's vectors; the same on all ranks.

    Attributes:
        store: The `N` clips.
        epoch: The epoch that labels are needed for, from 0.
        seed: The run's.
        previous: The labels of the previous epoch.
    """

    store: LogMelStore
    epoch: int
    seed: int
    previous: EpochLabels | None = None


class LabelSource(Protocol):
    """Makes the labels of an epoch. All ranks call the same methods with the same arguments, but for their rows of `z`.

    A source that clusters the network's vectors gathers them on rank 0 and does the rest there:

        def assign(self, z, situation):
            features = z.gather()
            return on_rank_zero(lambda: self._cluster(features, situation))

    With one process `z.gather()` is the array `(N, P)` and `on_rank_zero` calls its argument.
    """

    @property
    def clusterers(self) -> Sequence[Clusterer]:
        """All that may be used: their `k` is checked against the number of clips before anything slow begins."""
        ...

    def needs_vectors(self, epoch: int) -> bool:
        """Whether `assign` uses `z` in this epoch; if not, the pass over the set is skipped."""
        ...

    def assign(self, z: Vectors | None, situation: Situation) -> EpochLabels:
        """The labels of `situation.epoch`, which must be the same on all ranks; `z` is None if it is not needed."""
        ...


def _finite(features: Floats, store: LogMelStore, rows: Any) -> Floats:
    """The features if all are finite; otherwise raise and name the clips, which the clusterer cannot."""
    blocks = [r.start + np.flatnonzero(~np.isfinite(features[r]).all(axis=1)) for r in row_blocks(len(features))]
    bad = np.concatenate(blocks)
    if len(bad):
        raise ClusteringError(
            f"the network's vectors of {store.named(np.arange(len(store))[rows][bad])} hold NaN or Inf: look at these "
            "clips with `decar doctor`; if there are many, pass a lower learning rate (optimizer.lr)"
        )
    return features


def _warn_if_lowered(what: str, dim: int, n: int) -> None:
    """Log that whitening keeps fewer dimensions than `dim`; callers do so at their first clustering."""
    kept = affordable_dim(n, dim)
    if kept < dim:
        log.warning(
            "%s: whitened to %d dimensions, not dim=%d, since there are only %d clips (dim=%d needs %d): "
            "more dimensions would be noise, and the clusters random",
            *(what, kept, dim, n, dim, dim * CLIPS_PER_DIM),
        )


@dataclass(frozen=True)
class FittedLabels:
    """Whitening and centres fitted to a sample; each rank labels its own vectors with them."""

    whitening: Whitening
    centres: Sequence[Centres]

    @classmethod
    def fit(cls, features: Floats, clusterers: Sequence[Clusterer], dim: int) -> "FittedLabels":
        """Fit them to `(n, P)` vectors."""
        whitening = Whitening.fit(features, dim)
        points = whitening.unit(features)
        return cls(whitening, [clusterer.fit(points) for clusterer in clusterers if isinstance(clusterer, KMeans)])

    def __call__(self, features: Floats) -> NDArray[np.int64]:
        """The labels `(n, H)` of `(n, P)` vectors; a rank may have none of them."""
        if not len(features):
            return np.empty((0, len(self.centres)), np.int64)
        points = self.whitening.unit(features)
        return np.stack([centres.assign(points)[0] for centres in self.centres], axis=1)


def _sample(clusterers: Sequence[Clusterer], store: LogMelStore) -> NDArray[np.int64] | None:
    """The clips that all clusterings are fitted to; None: all, or a clusterer needs every point."""
    samples = [c.sample(len(store)) for c in clusterers if isinstance(c, KMeans) and c.max_points is not None]
    fit = len(samples) == len(clusterers) and all(sample is not None for sample in samples)
    return samples[0] if fit else None


@dataclass(frozen=True)
class NetworkLabels:
    """Cluster the vectors `z` of the whole set (paper: one clustering, every epoch; sections 3.1 and 3.2).

    Attributes:
        clusterers: One per head; the paper has one.
        dim: `z` is reduced to at most this many PCA-whitened dimensions (fewer for a small set: see
            `decar.clustering.affordable_dim`), then L2-normalised.
    """

    clusterers: Sequence[Clusterer]
    dim: int = 128

    def needs_vectors(self, epoch: int) -> bool:
        """Always."""
        return True

    def assign(self, z: Vectors | None, situation: Situation) -> EpochLabels:
        """Cluster anew; the clusterers are seeded by `(seed, epoch, h)`.

        Where all clusterers are fitted to a sample, rank 0 gets only the vectors of the sample, and each rank labels
        its own.
        """
        assert z is not None
        seeded = [clusterer.with_seed(_seed(situation, h)) for h, clusterer in enumerate(self.clusterers)]
        sample = _sample(seeded, situation.store)
        features = z.gather(sample)
        if sample is None:
            return on_rank_zero(lambda: self._labels(features, self._cluster(features, seeded, situation), situation))
        fitted = on_rank_zero(lambda: FittedLabels.fit(_finite(features, situation.store, sample), seeded, self.dim))
        columns = z.map(fitted).T
        found = [Assignment(column, len(c.points), 0.0) for column, c in zip(columns, fitted.centres, strict=True)]
        return on_rank_zero(lambda: self._labels(features, found, situation))

    def _cluster(self, features: Floats, clusterers: Sequence[Clusterer], situation: Situation) -> list[Assignment]:
        prepared = prepare(_finite(features, situation.store, slice(None)), self.dim)
        return [clusterer.fit_predict(prepared) for clusterer in clusterers]

    def _labels(self, features: Floats, found: Sequence[Assignment], situation: Situation) -> EpochLabels:
        """The assignments with their figures; `features` are what the clusterings were fitted to."""
        made, before = _stack(found, situation.epoch), situation.previous
        if before is None:
            _warn_if_lowered("the network's vectors", self.dim, len(features))
        compared = _compared(made.labels, before.labels) if before is not None else {}
        return replace(made, health={**made.health, "effective_rank": effective_rank(features), **compared})


@dataclass(frozen=True)
class DescriptorLabels:
    """Cluster plain descriptors of the log-mel, each by itself, once: labels that mean something from the first step.

    Attributes:
        clusterer: Used for each of them.
        descriptors: Names, see `decar.audio.descriptors`; one head each.
        dim: Each is reduced to at most this many PCA-whitened dimensions, as in `NetworkLabels`.
    """

    clusterer: Clusterer
    descriptors: Sequence[str] = ("spectrum", "variation", "envelope", "change", "shape", "centre")
    dim: int = 48

    def __post_init__(self) -> None:
        if not self.descriptors:
            raise ConfigError("labels.descriptors is empty: name at least one, or take labels=network")

    @property
    def clusterers(self) -> Sequence[Clusterer]:
        """The one that all descriptors share."""
        return [self.clusterer]

    def needs_vectors(self, epoch: int) -> bool:
        """Never."""
        return False

    def assign(self, z: Vectors | None, situation: Situation) -> EpochLabels:
        """The previous labels or, in the first epoch, new ones."""
        before = situation.previous
        if before is not None:
            return before.again(situation.epoch)
        return on_rank_zero(lambda: self._cluster(situation))

    def _cluster(self, situation: Situation) -> EpochLabels:
        _warn_if_lowered("descriptors", self.dim, len(situation.store))
        found = [
            self.clusterer.with_seed(_seed(situation, h)).fit_predict(whiten(features, self.dim))
            for h, features in enumerate(describe(situation.store, self.descriptors).values())
        ]
        return _stack(found, situation.epoch)


@dataclass(frozen=True)
class BothLabels:
    """Descriptors from the start; from an epoch on also the network's own vectors, clustered anew every epoch.

    Attributes:
        first: The clusterings that stay.
        network: Those that join.
        network_from: The first epoch with both, counted from 0.
    """

    first: DescriptorLabels
    network: NetworkLabels
    network_from: int = 1

    def __post_init__(self) -> None:
        check_whole("labels.network_from", self.network_from, 0)

    @property
    def clusterers(self) -> Sequence[Clusterer]:
        """Those of both."""
        return [*self.first.clusterers, *self.network.clusterers]

    def needs_vectors(self, epoch: int) -> bool:
        """From `network_from` on."""
        return epoch >= self.network_from

    def assign(self, z: Vectors | None, situation: Situation) -> EpochLabels:
        """The columns of the descriptors, then those of the network."""
        n_first, before = len(self.first.descriptors), situation.previous
        columns = self.first.assign(None, replace(situation, previous=_part(before, slice(None, n_first))))
        if not self.needs_vectors(situation.epoch):
            return columns
        joined = before is not None and len(before.sizes) > n_first
        previous = _part(before, slice(n_first, None)) if joined else None
        own = self.network.assign(z, replace(situation, previous=previous))
        labels = np.concatenate([columns.labels, own.labels], axis=1)
        return replace(columns, labels=labels, sizes=columns.sizes + own.sizes, health=own.health)


def _part(labels: EpochLabels | None, columns: slice) -> EpochLabels | None:
    """Some of the clusterings of an epoch."""
    return labels and replace(labels, labels=labels.labels[:, columns], sizes=labels.sizes[columns])


def _seed(situation: Situation, h: int) -> int:
    return derive_seed(Stream.CLUSTERS, situation.seed, situation.epoch, h) % 2**31


def _stack(found: Sequence[Assignment], epoch: int) -> EpochLabels:
    """One column and one size per assignment, with the figures that are logged."""
    health: dict[str, Any] = {
        "n_clusters": float(np.mean([np.count_nonzero(cluster_sizes(a.labels, a.n_clusters)) for a in found])),
        "entropy": float(np.mean([entropy(a.labels, a.n_clusters) for a in found])),
    }
    labels = np.stack([assignment.labels for assignment in found], axis=1)
    return EpochLabels(labels, [assignment.n_clusters for assignment in found], epoch, health)


def _compared(new: NDArray[np.int64], old: NDArray[np.int64]) -> dict[str, float]:
    """`nmi` between two assignments (Eq. 3), mean over the clusterings; empty when their number differs."""
    if new.shape != old.shape:
        return {}
    return {"nmi": float(np.mean([nmi(a, b) for a, b in zip(old.T, new.T, strict=True)]))}

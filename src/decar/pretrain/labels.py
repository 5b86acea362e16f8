"""Where the `(N, H)` pseudo-labels of an epoch come from, and when they are renewed.

The paper clusters the network's own vectors, once, at the start of every epoch: `NetworkLabels`. Vectors of an
untrained network carry little, so labels can begin with plain descriptors of the sound (`DescriptorLabels`), which need
clustering only once; `BothLabels` starts with those and lets clusterings of the network's vectors join. An epoch here
is the distance between two clusterings; how many steps that is, the data module says.
"""

import logging
from collections.abc import Callable, Sequence
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
from decar.pretrain.sampler import Stream, derive_seed
from decar.pretrain.shards import Sample

log = logging.getLogger(__name__)

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class EpochLabels:
    """The pseudo-labels that one epoch is trained on.

    Attributes:
        labels: `(N, H)` int64, one column a clustering.
        sizes: Number of clusters of each clustering: the widths of the heads.
        epoch: The epoch they are for.
        health: What is logged of them: numbers of clusters, entropy, effective rank, and `nmi` to the assignment
            before, which is there only where both were clustered for their own epoch.
        kept: The first so many columns are those of the epoch before; their heads go on learning.
    """

    labels: NDArray[np.int64]
    sizes: list[int]
    epoch: int
    health: dict[str, float] = field(default_factory=dict)
    kept: int = 0


@dataclass(frozen=True)
class Situation:
    """What labels can be made from.

    Attributes:
        ask: Makes a pass of the whole set through the network, where it is needed; see `shards.Shards.work`.
        store: The `N` clips.
        epoch: The epoch that labels are needed for.
        seed: The run's.
        previous: The labels of the epoch before.
    """

    ask: Callable[[Any], Any]
    store: LogMelStore
    epoch: int
    seed: int
    previous: EpochLabels | None = None

    def vectors(self) -> Floats:
        """`z` `(N, P)` of the whole set."""
        made: Floats = self.ask(None)
        return made


class LabelSource(Protocol):
    """Makes the labels of an epoch."""

    @property
    def clusterers(self) -> Sequence[Clusterer]:
        """All that may be used, to be checked against the number of clips before anything slow begins."""
        ...

    def assign(self, situation: Situation) -> EpochLabels:
        """The labels of `situation.epoch`."""
        ...


def _finite(features: Floats, store: LogMelStore, rows: Any) -> Floats:
    """The features, if all are numbers; else the clips are named, which a clusterer does not know."""
    blocks = [r.start + np.flatnonzero(~np.isfinite(features[r]).all(axis=1)) for r in row_blocks(len(features))]
    bad = np.concatenate(blocks)
    if len(bad):
        raise ClusteringError(
            f"the network's vectors of {store.named(np.arange(len(store))[rows][bad])} hold NaN or Inf: look at these "
            "clips with `decar doctor`; if there are many, pass a lower learning rate (optimizer.lr)"
        )
    return features


def _warn_if_lowered(what: str, dim: int, n: int) -> None:
    """Log that whitening keeps fewer dimensions than `dim`, once per run: callers call it at their first clustering."""
    kept = affordable_dim(n, dim)
    if kept < dim:
        log.warning(
            "%s: whitened to %d dimensions, not dim=%d, since there are only %d clips (dim=%d needs %d): "
            "more dimensions would be noise, and the clusters random",
            *(what, kept, dim, n, dim, dim * CLIPS_PER_DIM),
        )


@dataclass(frozen=True)
class FittedLabels:
    """Whitening and centres that were learned from a sample; each process labels its own vectors with them."""

    whitening: Whitening
    centres: Sequence[Centres]

    @classmethod
    def fit(cls, features: Floats, clusterers: Sequence[Clusterer], dim: int) -> "FittedLabels":
        """Learn them from `(n, P)` vectors."""
        whitening = Whitening.fit(features, dim)
        points = whitening.unit(features)
        return cls(whitening, [clusterer.fit(points) for clusterer in clusterers if isinstance(clusterer, KMeans)])

    def __call__(self, features: Floats) -> NDArray[np.int64]:
        """The labels `(n, H)` of `(n, P)` vectors."""
        points = self.whitening.unit(features)
        return np.stack([centres.assign(points)[0] for centres in self.centres], axis=1)


def _sample(clusterers: Sequence[Clusterer], store: LogMelStore) -> NDArray[np.int64] | None:
    """The clips that all clusterings are learned from; None: all, or a clusterer wants to see every point."""
    samples = [c.sample(len(store)) for c in clusterers if isinstance(c, KMeans) and c.max_points is not None]
    fit = len(samples) == len(clusterers) and all(sample is not None for sample in samples)
    return samples[0] if fit else None


@dataclass(frozen=True)
class NetworkLabels:
    """Cluster the vectors `z` of the whole set (paper: one clustering, every epoch; sections 3.1 and 3.2).

    Attributes:
        clusterers: One a head; the paper has one.
        dim: `z` is reduced to at most this many PCA-whitened dimensions (fewer for a small set: see
            `decar.clustering.affordable_dim`), then L2-normalised.
    """

    clusterers: Sequence[Clusterer]
    dim: int = 128

    def assign(self, situation: Situation) -> EpochLabels:
        """New labels from a pass over the whole set; the clusterers are seeded by `(seed, epoch, h)`."""
        seeded = [clusterer.with_seed(_seed(situation, h)) for h, clusterer in enumerate(self.clusterers)]
        sample = _sample(seeded, situation.store)
        if sample is None:
            features = _finite(situation.vectors(), situation.store, slice(None))
            prepared = prepare(features, self.dim)
            found = [clusterer.fit_predict(prepared) for clusterer in seeded]
        else:
            features = _finite(situation.ask(Sample(sample)), situation.store, sample)
            label = FittedLabels.fit(features, seeded, self.dim)
            columns = situation.ask(label).T
            found = [Assignment(column, len(c.points), 0.0) for column, c in zip(columns, label.centres, strict=True)]
        made = _stack(found, situation.epoch)
        before = situation.previous
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

    def assign(self, situation: Situation) -> EpochLabels:
        """The labels of the epoch before or, in the first, new ones; no pass through the network."""
        before = situation.previous
        if before is not None:
            return replace(before, epoch=situation.epoch, kept=len(before.sizes))
        _warn_if_lowered("descriptors", self.dim, len(situation.store))
        found = [
            self.clusterer.with_seed(_seed(situation, h)).fit_predict(whiten(features, self.dim))
            for h, features in enumerate(describe(situation.store, self.descriptors).values())
        ]
        return _stack(found, situation.epoch)


@dataclass(frozen=True)
class BothLabels:
    """Descriptors from the start; from an epoch on the network's own vectors too, clustered anew every epoch.

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

    def assign(self, situation: Situation) -> EpochLabels:
        """The columns of the descriptors, then those of the network."""
        n_first, before = len(self.first.descriptors), situation.previous
        columns = self.first.assign(replace(situation, previous=_part(before, slice(None, n_first))))
        if situation.epoch < self.network_from:
            return columns
        joined = before is not None and len(before.sizes) > n_first
        own = self.network.assign(replace(situation, previous=_part(before, slice(n_first, None)) if joined else None))
        labels = np.concatenate([columns.labels, own.labels], axis=1)
        return replace(columns, labels=labels, sizes=columns.sizes + own.sizes, health=own.health)


def _part(labels: EpochLabels | None, columns: slice) -> EpochLabels | None:
    """Some of the clusterings of an epoch."""
    return labels and replace(labels, labels=labels.labels[:, columns], sizes=labels.sizes[columns])


def _seed(situation: Situation, h: int) -> int:
    return derive_seed(Stream.CLUSTERS, situation.seed, situation.epoch, h) % 2**31


def _stack(found: Sequence[Assignment], epoch: int) -> EpochLabels:
    """One column and one size an assignment, with what is logged of them."""
    health: dict[str, Any] = {
        "n_clusters": float(np.mean([np.count_nonzero(cluster_sizes(a.labels, a.n_clusters)) for a in found])),
        "entropy": float(np.mean([entropy(a.labels, a.n_clusters) for a in found])),
    }
    labels = np.stack([assignment.labels for assignment in found], axis=1)
    return EpochLabels(labels, [assignment.n_clusters for assignment in found], epoch, health)


def _compared(new: NDArray[np.int64], old: NDArray[np.int64]) -> dict[str, float]:
    """`nmi` between two assignments (Eq. 3), mean over the clusterings; nothing when their number differs."""
    if new.shape != old.shape:
        return {}
    return {"nmi": float(np.mean([nmi(a, b) for a, b in zip(old.T, new.T, strict=True)]))}

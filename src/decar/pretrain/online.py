"""`labels=online`: clusters of the network's own vectors without a pass over the set.

The paper names this as future work: cluster assignments learned online, for "practically unlimited amounts of data". At
the start of an epoch a fixed sample of clips is clustered, and a copy of the network, the teacher, is set aside. A
step takes two crops of each clip. The teacher's vector of the first one, as it is, goes to the clusters by
Sinkhorn-Knopp, which uses all of them evenly over the batch and a queue of recent vectors: its code. The network learns
to predict the code from both crops, augmented (after SwAV, arXiv 2006.09882, section 3.1, where both codes come from
the network itself, which collapsed: docs/recipe.md). Nothing here grows with the number of clips.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from decar.audio import FrontEnd, LogMelStore
from decar.audio.clips import Frames
from decar.audio.descriptors import DESCRIPTORS, describe
from decar.clustering import Clusterer, KMeans, nmi
from decar.clustering.stats import cluster_sizes, effective_rank, entropy
from decar.errors import ConfigError, check_positive, check_whole
from decar.models import Encoder
from decar.pretrain.labels import DescriptorLabels, EpochLabels, FittedLabels, Situation
from decar.pretrain.ranks import deal_batch, gather_batch, on_rank_zero
from decar.pretrain.sampler import Stream, derive_seed
from decar.pretrain.vectors import Floats, Rows, Vectors

VIEWS = 2  # crops of a clip in a batch


def sinkhorn(scores: Tensor, epsilon: float, n_iter: int) -> Tensor:
    """Codes `(B, K)`: the assignment that fits the scores, its entropy weighted by `epsilon`, with even marginals.

    Each row sums to 1 and, as `n_iter` grows, each column to B / K (Cuturi 2013, arXiv 1306.0895; SwAV, Eq. 3 to 5:
    `diag(u) exp(scores / epsilon) diag(v)`). Computed with logarithms, so that no `epsilon` overflows.

    Args:
        scores: `(B, K)`, cosines of vectors and prototypes.
        epsilon: The smaller, the harder are the codes.
        n_iter: Times that columns, then rows, are normalised.
    """
    logs = scores / epsilon
    for _ in range(n_iter):
        logs = torch.log_softmax(torch.log_softmax(logs, 0), 1)
    return logs.exp()


@dataclass(frozen=True)
class FittedDescriptors:
    """`DescriptorLabels` fitted to a sample: it labels clips that are met later. In its place as a label source.

    Attributes:
        names: The descriptors.
        fitted: Whitening and centres of each.
    """

    names: Sequence[str]
    fitted: Sequence[FittedLabels]
    clusterers: Sequence[Clusterer] = ()

    @classmethod
    def fit(cls, labels: DescriptorLabels, store: LogMelStore, seed: int) -> "FittedDescriptors":
        """Fit them to the clips of a store.

        Raises:
            ConfigError: The clusterer has no centres.
        """
        kmeans = labels.clusterer
        if not isinstance(kmeans, KMeans):
            raise ConfigError("labels.first labels clips of a stream by their nearest centre: pass clusterer=kmeans")
        seeds = [derive_seed(Stream.CLUSTERS, seed, 0, h) % 2**31 for h in range(len(labels.descriptors))]
        fitted = [
            FittedLabels.fit(features, [replace(kmeans, gpu=False, seed=number)], labels.dim)
            for number, features in zip(seeds, describe(store, labels.descriptors).values(), strict=True)
        ]
        return cls(labels.descriptors, fitted)

    def label(self, mels: Sequence[Frames], frontend: FrontEnd) -> NDArray[np.int64]:
        """The labels `(B, H)` of `B` log-mels (F, M)."""
        clips = [np.asarray(mel, np.float64) for mel in mels]
        columns = [
            fitted(np.stack([DESCRIPTORS[name](clip, frontend).astype(np.float32) for clip in clips]))[:, 0]
            for name, fitted in zip(self.names, self.fitted, strict=True)
        ]
        return np.stack(columns, axis=1)

    def needs_vectors(self, epoch: int) -> bool:
        """Never."""
        return False

    def assign(self, z: Vectors | None, situation: Situation) -> EpochLabels:
        """The labels of the store's clips, the same in every epoch."""
        if situation.previous is not None:
            return situation.previous.again(situation.epoch)
        store, sizes = situation.store, [len(fitted.centres[0].points) for fitted in self.fitted]
        return EpochLabels(self.label([store[i] for i in range(len(store))], store.frontend), sizes, situation.epoch)


@dataclass(frozen=True)
class OnlineLabels:
    """Clusters of the network's own vectors, found in a sample; beside them, if wanted, those of plain descriptors.

    As a label source it makes the labels of the descriptors alone. The network's are codes of each batch, from
    `Prototypes`.

    Attributes:
        clusterer: Clusters the sample at the start of each epoch.
        first: The clusterings of descriptors, as in `BothLabels`; None: the network's own alone.
        dim: `z` is reduced to at most this many whitened dimensions, as in `NetworkLabels`, by the sample.
        epsilon: Of `sinkhorn` (SwAV: .05).
        n_iter: Of `sinkhorn` (SwAV: 3).
        queue: Recent vectors that take part in `sinkhorn`, at least `k`: a batch is smaller than what `k` clusters need
            (SwAV: 3,840, 15 batches; here batches have 64 crops of 32 clips).
        sample: Clips, drawn once by the run's seed, at least `k`.
    """

    clusterer: Clusterer
    first: DescriptorLabels | FittedDescriptors | None = None
    dim: int = 64
    epsilon: float = 0.05
    n_iter: int = 3
    queue: int = 960
    sample: int = 1000

    def __post_init__(self) -> None:
        if not isinstance(self.clusterer, KMeans):
            raise ConfigError(
                "labels=online compares crops with centres, which only K-Means has: pass clusterer=kmeans"
            )
        for name, least in (("dim", 1), ("n_iter", 1), ("queue", self.k), ("sample", self.k)):
            check_whole(f"labels.{name}", getattr(self, name), least)
        check_positive("labels.epsilon", self.epsilon)

    @property
    def k(self) -> int:
        """Clusters of the network's own vectors."""
        assert isinstance(self.clusterer, KMeans)
        return self.clusterer.k

    @property
    def clusterers(self) -> Sequence[Clusterer]:
        """That of the descriptors, and that of the sample."""
        return [*(self.first.clusterers if self.first else ()), self.clusterer]

    def for_stream(self, store: LogMelStore, seed: int) -> "OnlineLabels":
        """The same with descriptors fitted to the sample of a stream. Collective.

        The sample is small: it is clustered on the CPU, where a resumed run finds the same centres.
        """
        first = self.first
        if not isinstance(first, DescriptorLabels):
            return self
        return replace(self, first=on_rank_zero(lambda: FittedDescriptors.fit(first, store, seed)))

    def needs_vectors(self, epoch: int) -> bool:
        """Never."""
        return False

    def assign(self, z: Vectors | None, situation: Situation) -> EpochLabels:
        """The labels of the descriptors, `(N, H)`, H = 0 without them; `sizes` has `k` behind theirs."""
        columns = EpochLabels(np.empty((len(situation.store), 0), np.int64), [], situation.epoch)
        if self.first is not None:
            before = situation.previous
            before = before and replace(before, sizes=before.sizes[:-1], kept=0, sample=None)
            columns = self.first.assign(z, replace(situation, previous=before))
        return replace(columns, sizes=[*columns.sizes, self.k], health={}, views=VIEWS)

    def watched(self, n_clips: int, seed: int) -> Rows:
        """The clips of the sample, ascending: the same ones in every epoch."""
        rng = np.random.default_rng(derive_seed(Stream.HEALTH, seed, 4))
        return np.sort(rng.permutation(n_clips)[: self.sample])

    def cluster(
        self, z: Floats, clips: Rows, labels: EpochLabels, situation: Situation
    ) -> tuple[FittedLabels, EpochLabels]:
        """Whitening and centres of the vectors `(n, P)` of the sample; `labels` with its clusters and their figures.

        The NMI is that to the clusters of the sample in the previous epoch.
        """
        seed = derive_seed(Stream.CLUSTERS, situation.seed, situation.epoch, len(labels.sizes) - 1) % 2**31
        fitted = FittedLabels.fit(z, [self.clusterer.with_seed(seed)], self.dim)
        found, before = fitted(z)[:, 0], situation.previous
        health = {
            "n_clusters": float(np.count_nonzero(cluster_sizes(found, self.k))),
            "entropy": entropy(found, self.k),
            "effective_rank": effective_rank(z),
        }
        if before is not None and before.sample is not None:
            health["nmi"] = nmi(before.sample[:, 1], found)
        return fitted, replace(labels, health=health, sample=np.stack([clips, found], axis=1))


class Teacher(nn.Module):
    """A copy of the network that is not trained: log-mels `(B, 1, M, F)` to `z` `(B, P)`."""

    def __init__(self, encoder: Encoder, projection: nn.Module) -> None:
        super().__init__()
        self.encoder, self.projection = copy.deepcopy(encoder), copy.deepcopy(projection)
        self.requires_grad_(False).train()

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in eval mode."""
        return super().train(False)

    def forward(self, logmel: Tensor) -> Tensor:
        """`z`, which is clustered."""
        z: Tensor = self.projection(self.encoder.for_objective(logmel))[1]
        return z


class Prototypes(nn.Module):
    """The `K` clusters of an epoch, the teacher whose vectors they divide, and the queue; all are in the state.

    Args:
        encoder: `f`.
        projection: `g`.
        dim: `P`.
        options: Numbers.
    """

    mean: Tensor
    axes: Tensor
    points: Tensor

    def __init__(self, encoder: Encoder, projection: nn.Module, dim: int, options: OnlineLabels) -> None:
        super().__init__()
        self.options, self.teacher = options, Teacher(encoder, projection)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("axes", torch.zeros(options.dim, dim))  # of whitening; those that are not used are zero
        self.register_buffer("points", torch.zeros(options.k, options.dim))
        self.queue = torch.empty(0, options.dim)  # (n, dim), whitened, the latest first

    def renew(self, encoder: nn.Module, projection: nn.Module, fitted: FittedLabels) -> None:
        """Begin an epoch: the network as it stands becomes the teacher, its clusters those of `fitted`."""
        self.teacher.encoder.load_state_dict(encoder.state_dict())
        self.teacher.projection.load_state_dict(projection.state_dict())
        self.mean.copy_(torch.from_numpy(fitted.whitening.mean))
        for buffer, rows in ((self.axes, fitted.whitening.projection.T), (self.points.T, fitted.centres[0].points.T)):
            buffer.zero_()[: len(rows)] = torch.from_numpy(rows)
        self.queue = self.queue[:0]

    @torch.no_grad()
    def forward(self, crops: Tensor) -> Tensor:
        """Codes `(B / size, K)` for this rank's share of a batch `(B / size, 1, M, F)`; both crops of a clip have one.

        Collective: codes are those of the whole batch, and of the queue, on every rank.
        """
        z = gather_batch(self.teacher(crops[: len(crops) // VIEWS]).float())
        with torch.autocast(z.device.type, enabled=False):
            white = functional.normalize((z - self.mean) @ self.axes.T)
            recent = torch.cat([white, self.queue.to(z.device)])
            scores = recent @ functional.normalize(self.points).T
            codes = sinkhorn(scores, self.options.epsilon, self.options.n_iter)
        self.queue = recent[: self.options.queue]
        return deal_batch(codes[: len(z)]).repeat(VIEWS, 1)

    def get_extra_state(self) -> Tensor:
        """The queue, whose length changes, for a checkpoint."""
        return self.queue.cpu()

    def set_extra_state(self, state: Any) -> None:
        """Continue with this queue."""
        self.queue = state

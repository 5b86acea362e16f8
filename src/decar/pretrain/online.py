"""`labels=online`: clusters that are learned with the network, from batches alone, without a pass over the set.

The paper names this as future work: cluster assignments learned online, for "practically unlimited amounts of data".
Each cluster has a prototype, a direction in the space of `z`. A step takes two crops of each clip. Sinkhorn-Knopp
spreads the whitened vectors of the batch, and of a queue of recent steps, evenly over the prototypes: the code of a
crop. The network learns to predict the code of one crop from the other (swapped prediction: SwAV, arXiv 2006.09882,
section 3.1). Nothing here grows with the number of clips.
"""

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
from decar.clustering import Clusterer, KMeans, affordable_dim, nmi
from decar.clustering.stats import cluster_sizes, effective_rank, entropy
from decar.errors import ConfigError, check_positive, check_whole
from decar.pretrain.labels import DescriptorLabels, EpochLabels, FittedLabels, Situation
from decar.pretrain.ranks import deal_batch, gather_batch, on_rank_zero
from decar.pretrain.sampler import Stream, derive_seed
from decar.pretrain.vectors import Floats, Rows, Vectors

VIEWS = 2  # crops of a clip in a batch
_RENEW_EVERY = 10  # steps; the axes of 512 numbers take 50 ms of a CPU


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
            return replace(situation.previous, epoch=situation.epoch, kept=len(self.names))
        store, sizes = situation.store, [len(fitted.centres[0].points) for fitted in self.fitted]
        return EpochLabels(self.label([store[i] for i in range(len(store))], store.frontend), sizes, situation.epoch)


@dataclass(frozen=True)
class OnlineLabels:
    """Prototypes learned with the network; beside them, if wanted, clusters of plain descriptors from the start.

    As a label source it makes the labels of the descriptors. The prototypes have none that are kept: `Prototypes` makes
    the codes of a batch in each step, and the clusters of a fixed sample of clips at the start of each epoch.

    Attributes:
        k: Prototypes.
        first: The clusterings of descriptors, as in `BothLabels`; None: prototypes alone.
        dim: `z` is reduced to at most this many whitened dimensions, one per 30 clips of queue and batch.
        temperature: Of the softmax over scores (SwAV: .1).
        epsilon: Of `sinkhorn` (SwAV: .05).
        n_iter: Of `sinkhorn` (SwAV: 3).
        queue: Recent vectors `z` that take part in whitening and `sinkhorn`: a batch is smaller than what `k` clusters
            need (SwAV: 3,840).
        sample: Clips, drawn once by the run's seed, whose clusters are compared from epoch to epoch (NMI).
    """

    k: int
    first: DescriptorLabels | FittedDescriptors | None = None
    dim: int = 64
    temperature: float = 0.1
    epsilon: float = 0.05
    n_iter: int = 3
    queue: int = 1920
    sample: int = 1000

    def __post_init__(self) -> None:
        for name, least in (("k", 2), ("dim", 1), ("n_iter", 1), ("queue", 0), ("sample", 2)):
            check_whole(f"labels.{name}", getattr(self, name), least)
        for name in ("temperature", "epsilon"):
            check_positive(f"labels.{name}", getattr(self, name))

    @property
    def clusterers(self) -> Sequence[Clusterer]:
        """The one of the descriptors: prototypes need no clusterer."""
        return self.first.clusterers if self.first else []

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
        """The labels of the descriptors, `(N, H)`; `H` is 0 without them."""
        if self.first is None:
            nothing = np.empty((len(situation.store), 0), np.int64)
            return EpochLabels(nothing, [], situation.epoch, views=VIEWS)
        return replace(self.first.assign(z, situation), health={}, views=VIEWS)

    def watched(self, n_clips: int, seed: int) -> Rows:
        """The clips of the sample, ascending: the same ones in every epoch."""
        rng = np.random.default_rng(derive_seed(Stream.HEALTH, seed, 4))
        return np.sort(rng.permutation(n_clips)[: self.sample])


def principal_axes(z: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Mean `(P,)` of vectors `(n, P)`, and their leading principal axes `(dim, P)`, each divided by its deviation.

    As `decar.clustering.Whitening`: one axis per 30 of the n / 2 clips; the other rows are zero.
    """
    mean = z.mean(0)
    centred = (z - mean).double()
    variance, directions = torch.linalg.eigh(centred.T @ centred / len(z))
    kept = min(affordable_dim(max(1, len(z) // VIEWS), dim), z.shape[1])
    variance, directions = variance.flip(0)[:kept], directions.flip(1)[:, :kept].T
    gain = torch.where(variance > 1e-6 * variance[0], variance.clamp_min(1e-30).rsqrt(), 0.0)
    return mean, functional.pad(gain[:, None] * directions, (0, 0, 0, dim - kept)).float()


class Prototypes(nn.Module):
    """`K` prototypes, the queue of recent vectors, and the axes by which vectors are whitened; all are in the state.

    The paper whitens `z` before it is clustered, and so it is here, by the queue and the batch. Without that the
    embedding collapsed to three directions (docs/recipe.md): level and tilt of the spectrum decide all cosines.
    Prototypes are trained by the optimizer as the network is, and compared by their direction alone.

    Args:
        dim: `P`.
        options: Numbers.
        seed: Seeds the prototypes.
    """

    def __init__(self, dim: int, options: OnlineLabels, seed: int) -> None:
        super().__init__()
        self.options = options
        generator = torch.Generator().manual_seed(derive_seed(Stream.HEADS, seed))
        self.weight = nn.Parameter(functional.normalize(torch.randn(options.k, dim, generator=generator)))
        # no buffers, which DistributedDataParallel would send in every step; all ranks have the same
        self.queue = torch.empty(0, dim)  # (n, P), the latest first
        self.mean, self.axes = torch.zeros(dim), torch.zeros(options.dim, dim)

    def forward(self, z: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Cross-entropy of each crop's prediction and the code of the other crop of its clip; share of right ones.

        Collective: codes are those of the whole batch, and of the queue, on every rank.

        Args:
            z: `(B / size, P)`, this rank's share of a batch, whose second half has the clips of the first.
            step: Number in the epoch; axes are renewed in every tenth, and in all until the queue is full.
        """
        with torch.autocast(z.device.type, enabled=False):
            codes = self._codes(gather_batch(z.detach().float()), step)
            wanted = deal_batch(codes.roll(len(codes) // VIEWS, 0))
            scores = self._scores(z.float(), self.mean, self.axes)
            logs = torch.log_softmax(scores / self.options.temperature, 1)
        hits = (scores.argmax(1) == wanted.argmax(1)).float().mean()
        return -(wanted * logs).sum(1).mean(), hits

    def _scores(self, z: Tensor, mean: Tensor, axes: Tensor) -> Tensor:
        """Cosines `(B, K)` of whitened vectors and prototypes."""
        white = functional.normalize((z - mean) @ axes.T)
        return white @ functional.normalize(self.weight @ functional.normalize(axes).T).T

    @torch.no_grad()
    def _codes(self, z: Tensor, step: int) -> Tensor:
        """The codes `(B, K)` of a batch `(B, P)`, which then joins the queue."""
        recent = torch.cat([z, self.queue.to(z.device)])
        if step % _RENEW_EVERY == 0 or len(self.queue) < self.options.queue:
            self.mean, self.axes = principal_axes(recent, self.options.dim)
        self.mean, self.axes = self.mean.to(z.device), self.axes.to(z.device)
        self.queue = recent[: self.options.queue]
        return self._assign(recent, self.mean, self.axes)[: len(z)]

    def _assign(self, z: Tensor, mean: Tensor, axes: Tensor) -> Tensor:
        return sinkhorn(self._scores(z, mean, axes), self.options.epsilon, self.options.n_iter)

    @torch.no_grad()
    def clusters(self, z: Floats) -> NDArray[np.int64]:
        """The cluster `(n,)` of vectors `(n, P)`: the prototype with the largest part of each one's code.

        They are whitened by themselves.
        """
        vectors = torch.from_numpy(z).to(self.weight.device)
        found: NDArray[np.int64] = (
            self._assign(vectors, *principal_axes(vectors, self.options.dim)).argmax(1).cpu().numpy()
        )
        return found

    def figures(self, z: Floats, clips: Rows, labels: EpochLabels, before: EpochLabels | None) -> EpochLabels:
        """`labels` with the clusters of the sample, and their figures.

        Args:
            z: `(n, P)`, of the sample.
            clips: `(n,)`.
            labels: Those of this epoch.
            before: Those of the previous one, whose clusters of the sample the NMI compares with.
        """
        found, k = self.clusters(z), self.options.k
        health = {
            "n_clusters": float(np.count_nonzero(cluster_sizes(found, k))),
            "entropy": entropy(found, k),
            "effective_rank": effective_rank(z),
        }
        if before is not None and before.sample is not None:
            health["nmi"] = nmi(before.sample[:, 1], found)
        return replace(labels, health=health, sample=np.stack([clips, found], axis=1))

    def get_extra_state(self) -> Tensor:
        """Mean, axes and queue, `(1 + dim + n, P)`, for a checkpoint."""
        return torch.cat([self.mean[None], self.axes, self.queue.to(self.axes.device)]).cpu()

    def set_extra_state(self, state: Any) -> None:
        """Continue with these."""
        self.mean, self.axes, self.queue = state[0], state[1 : 1 + self.options.dim], state[1 + self.options.dim :]

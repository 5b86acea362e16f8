"""`labels=online`: clusters that are learned with the network, from batches alone, without a pass over the set.

The paper names this as future work: cluster assignments learned online, for "practically unlimited amounts of data".
Each cluster has a prototype, a direction in the space of `z`. A step takes two crops of each clip. Sinkhorn-Knopp
spreads the vectors of the batch, and of a queue of recent steps, evenly over the prototypes: the code of a crop. The
network learns to predict the code of one crop from the other (swapped prediction: SwAV, arXiv 2006.09882, section 3.1).
Nothing here grows with the number of clips.
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
from decar.clustering import Clusterer, KMeans, nmi
from decar.clustering.stats import cluster_sizes, effective_rank, entropy
from decar.errors import ConfigError, TrainingError, check_positive, check_whole
from decar.models.embed import evaluating
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
        temperature: Of the softmax over scores (SwAV: .1).
        epsilon: Of `sinkhorn` (SwAV: .05).
        n_iter: Of `sinkhorn` (SwAV: 3).
        queue: Recent vectors `z` that take part in `sinkhorn`: a batch is smaller than what `k` clusters need (SwAV:
            3,840 for batches of 256; 15 batches).
        sample: Clips, drawn once by the run's seed, whose clusters are compared from epoch to epoch (NMI).
    """

    k: int
    first: DescriptorLabels | FittedDescriptors | None = None
    temperature: float = 0.1
    epsilon: float = 0.05
    n_iter: int = 3
    queue: int = 960
    sample: int = 1000

    def __post_init__(self) -> None:
        for name, least in (("k", 2), ("n_iter", 1), ("queue", 0), ("sample", 2)):
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


class Prototypes(nn.Module):
    """`K` prototypes, and the queue of recent vectors, which is part of the state.

    Vectors are standardised by the batch (BatchNorm without weights) before they are normalised to unit length: the
    paper's `z` follows a ReLU, so all of them share a large part, and their cosines with a prototype hardly differ.
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
        self.standardise = nn.BatchNorm1d(dim, affine=False)
        # (n, P), unit vectors, the latest first; no buffer, which DistributedDataParallel would send in every step
        self.queue = torch.empty(0, dim)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of each crop's prediction and the code of the other crop of its clip; share of right ones.

        Collective: codes are those of the whole batch, and of the queue, on every rank.

        Args:
            z: `(B / size, P)`, this rank's share of a batch, whose second half has the clips of the first.
        """
        with torch.autocast(z.device.type, enabled=False):
            unit = self._unit(z)
            codes = self._codes(gather_batch(unit.detach()))
            wanted = deal_batch(codes.roll(len(codes) // VIEWS, 0))
            scores = self._scores(unit)
            logs = torch.log_softmax(scores / self.options.temperature, 1)
        hits = (scores.argmax(1) == wanted.argmax(1)).float().mean()
        return -(wanted * logs).sum(1).mean(), hits

    def _unit(self, z: Tensor) -> Tensor:
        return functional.normalize(self.standardise(z.float()))

    def _scores(self, unit: Tensor) -> Tensor:
        """Cosines `(B, K)` of unit vectors `(B, P)` and prototypes."""
        return functional.linear(unit, functional.normalize(self.weight))

    @torch.no_grad()
    def _codes(self, unit: Tensor) -> Tensor:
        """The codes `(B, K)` of a batch `(B, P)`, which then joins the queue."""
        recent = torch.cat([unit, self.queue.to(unit.device)])
        self.queue = recent[: self.options.queue]
        return self._assign(recent)[: len(unit)]

    def _assign(self, unit: Tensor) -> Tensor:
        return sinkhorn(self._scores(unit), self.options.epsilon, self.options.n_iter)

    def clusters(self, z: Floats) -> NDArray[np.int64]:
        """The cluster `(n,)` of vectors `(n, P)`: the prototype with the largest part of each one's code."""
        with evaluating(self):
            codes = self._assign(self._unit(torch.from_numpy(z).to(self.weight.device)))
        found: NDArray[np.int64] = codes.argmax(1).cpu().numpy()
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
        """The queue, for a checkpoint; all ranks have the same."""
        return self.queue.cpu()

    def set_extra_state(self, state: Any) -> None:
        """Continue with this queue."""
        if state.ndim != 2 or state.shape[1] != self.weight.shape[1]:
            raise TrainingError(
                f"the checkpoint's queue has shape {tuple(state.shape)}, not (n, {self.weight.shape[1]})"
            )
        self.queue = state

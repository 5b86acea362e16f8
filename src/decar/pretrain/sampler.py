"""The balanced draw: every non-empty cluster gives the same number of crops, whatever its size.

The paper draws batches uniformly over the pseudo-labels so that no cluster dominates. Its released code does not: it
re-orders the data set after the sampler was built. Here the index space never changes.
"""

from collections.abc import Iterator
from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Sampler

from decar.errors import ClusteringError


class Stream(IntEnum):
    """The use of a seed; no two uses share a stream of random numbers."""

    CLUSTERS = 1
    ORDER = 2
    CROPS = 3
    HEADS = 4
    STEP = 5
    HEALTH = 6


def derive_seed(*parts: int) -> int:
    """A 63-bit seed for a place in the run, such as `(seed, epoch, step)`: a pure function, so a resume repeats it.

    >>> derive_seed(0, 3) == derive_seed(0, 3), derive_seed(0, 3) == derive_seed(0, 4)
    (True, False)
    """
    words = [len(parts), *(int(part) for part in parts)]  # the length too: numpy pads with zeros
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))


def uniform_draw(labels: NDArray[np.int64], num_samples: int, seed: int) -> NDArray[np.int64]:
    """Draw `num_samples` dataset indices in random order, equally many (to within one) of each non-empty cluster.

    Within a cluster no clip is drawn twice before all were drawn once, in an order shuffled by `seed`.

    Args:
        labels: `(N,)` pseudo-labels; cluster numbers without a clip are left out.
        num_samples: Length of the draw.
        seed: Same seed, same draw.
    """
    rng = np.random.default_rng(seed)
    order = np.lexsort((rng.random(len(labels)), labels))  # clips by cluster, shuffled within
    _, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    quota = np.full(len(sizes), num_samples // len(sizes))
    quota[rng.permutation(len(sizes))[: num_samples % len(sizes)]] += 1
    cluster = np.repeat(np.arange(len(sizes)), quota)
    turn = np.arange(num_samples) - np.repeat(np.cumsum(quota) - quota, quota)  # 0, 1, 2, … within each cluster
    drawn = order[starts[cluster] + turn % sizes[cluster]]
    shuffled: NDArray[np.int64] = drawn[rng.permutation(num_samples)]
    return shuffled


class UniformClusterSampler(Sampler[int]):
    """Yields dataset indices balanced over pseudo-labels: one global order per epoch, divided over the ranks in turn.

    Args:
        labels: `(N,)` pseudo-label of each clip.
        num_samples: Draws per epoch over all ranks; rounded up to a multiple of `world_size`. Default `N`.
        seed: With the epoch it determines the order.
        rank: This process.
        world_size: Number of processes.

    Raises:
        ClusteringError: There are no labels.
    """

    def __init__(
        self, labels: ArrayLike, num_samples: int | None = None, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        self.labels: NDArray[np.int64] = np.asarray(labels, np.int64)
        if self.labels.ndim != 1 or not len(self.labels):
            raise ClusteringError(f"the sampler needs one label a clip, (N,), found shape {self.labels.shape}")
        self.seed, self.rank, self.world_size, self.epoch = seed, rank, world_size, 0
        wanted = len(self.labels) if num_samples is None else num_samples
        self.num_samples = -(-wanted // world_size) * world_size

    def set_epoch(self, epoch: int) -> None:
        """Use the order of this epoch from the next iteration on."""
        self.epoch = epoch

    def draw(self) -> NDArray[np.int64]:
        """This rank's indices of the epoch, `(num_samples / world_size,)`."""
        order = uniform_draw(self.labels, self.num_samples, derive_seed(Stream.ORDER, self.seed, self.epoch))
        return order[self.rank :: self.world_size]

    def __iter__(self) -> Iterator[int]:
        return iter(self.draw().tolist())

    def __len__(self) -> int:
        return self.num_samples // self.world_size

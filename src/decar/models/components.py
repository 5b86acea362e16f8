"""Fewer numbers a clip, for search: embeddings on the leading principal directions of the training clips' embeddings.

Letters: `N` clips, `D` numbers of an embedding, `d` of a reduced one.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from decar.models.networks import seeded

MOST_CLIPS = 10_000  # that directions are learned from; of more an even sample
DIRECTIONS = "decar.directions"  # of the tensor in a bundle
_SPARE = 32  # directions that the randomised SVD computes beside those that are asked for


def principal_directions(vectors: NDArray[np.float32], dim: int) -> Tensor:
    """The `d = min(dim, N, D)` directions on which `(N, D)` vectors are longest: `(d, D)`, orthonormal, longest first.

    The mean is not subtracted: of all `d`-dimensional projections this one keeps inner products best (Eckart and Young
    1936), so that cosines of reduced embeddings are about those of whole ones. By a randomised SVD (Halko, Martinsson
    and Tropp 2011, arXiv:0909.4061) of a fixed seed, since an exact one takes minutes at 4,608 numbers. The largest
    component of a direction is positive.
    """
    x = torch.from_numpy(np.ascontiguousarray(vectors, np.float32))
    with seeded(0):
        found = torch.svd_lowrank(x, q=min(dim + _SPARE, *x.shape), niter=4)[2][:, :dim].T
    return (found * found.gather(1, found.abs().argmax(1, keepdim=True)).sign()).contiguous()


class Reduced(nn.Module):
    """A network whose vectors are projected: `(B, 1, M, F)` to `(B, d)`.

    A clip of several pieces is the same mean of theirs as before, since the projection is linear.

    Args:
        network: `(B, 1, M, F)` to `(B, D)`.
        directions: `(d, D)`.
        settings: Those of the network, for `Encoder.settings`.
    """

    directions: Tensor

    def __init__(self, network: nn.Module, directions: Tensor, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("directions", directions.float())
        self.decar_settings = {**settings, "dim": len(directions)}

    def forward(self, logmel: Tensor) -> Tensor:
        """Embed log-mels, see the class."""
        vectors: Tensor = self.network(logmel)
        return nn.functional.linear(vectors.float(), self.directions)

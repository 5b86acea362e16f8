"""The vectors that training has seen, kept for the next clustering: no extra pass over the set in each epoch.

The paper pays one forward pass an epoch to cluster, and names saving it as future work. Here the first clustering still
makes a real pass; after that, each step leaves the `z` of its crops in the bank, and the next epoch clusters those.
What is clustered is then of another kind: crops, augmented, by the weights of up to an epoch ago; a clip that was not
drawn keeps its older vector.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed

from decar.pretrain.embed import Share
from decar.pretrain.ranks import collect_rows, rank_and_size

Floats = NDArray[np.float32]
Seen = tuple[NDArray[np.int64], Floats]  # (n, 2) clip and when; (n, P)

_STAY_ON_DEVICE = 32  # steps whose vectors wait on the device: copying each at once would make a GPU wait


class FeatureBank:
    """The latest `z` of each of `N` clips. It lies on rank 0; the others keep what they saw until it is asked for.

    Args:
        n_clips: `N`.
        dim: `P`.
    """

    def __init__(self, n_clips: int, dim: int) -> None:
        self.n_clips, self.dim = n_clips, dim
        self.filled = False
        self._rows: Floats = np.empty((0, dim), np.float32)
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._seen: list[Seen] = []
        self._count = 0

    def fill(self, rows: Floats | None) -> None:
        """Begin with the vectors `(N, P)` of a real pass; ranks but 0 give None."""
        self._rows = np.empty((0, self.dim), np.float32) if rows is None else rows
        self.filled = True

    def add(self, index: Tensor, vectors: Tensor) -> None:
        """Keep the vectors `(B, P)` of clips `(B,)` of one step; before the first pass there is no need to."""
        if not self.filled:
            return
        self._waiting.append((index, vectors.detach()))
        if len(self._waiting) == _STAY_ON_DEVICE:
            self._fetch()

    def _fetch(self) -> None:
        """Bring what waits on the device here, with its place in the draw of all ranks: the later of two counts."""
        if not self._waiting:
            return
        rank, size = rank_and_size()
        index = torch.cat([index for index, _ in self._waiting]).cpu().numpy()
        vectors = torch.cat([vectors for _, vectors in self._waiting]).float().cpu().numpy()
        when = np.arange(self._count, self._count + len(index)) * size + rank  # batches are dealt out in turn
        self._seen.append((np.stack([index, when], axis=1), vectors))
        self._count += len(index)
        self._waiting.clear()

    def merge(self, device: torch.device) -> None:
        """Bring what all ranks saw to rank 0; all must call it. When it is called does not change what comes out."""
        self._fetch()
        rank, size = rank_and_size()
        seen = [*self._seen, (np.empty((0, 2), np.int64), np.empty((0, self.dim), np.float32))]
        stamps, rows = (np.concatenate(part) for part in zip(*seen, strict=True))
        self._seen.clear()
        if size > 1:
            counts: list[Any] = [None] * size
            distributed.all_gather_object(counts, len(rows))
            ends = np.cumsum(counts)
            places = [np.arange(end - count, end) for end, count in zip(ends, counts, strict=True)]
            if not ends[-1]:
                return
            stamps, rows = (collect_rows(part, places, device) for part in (stamps, rows))
        if rank == 0:
            order = np.argsort(stamps[:, 1], kind="stable")
            self._rows[stamps[order, 0]] = rows[order]  # of several for one clip the last stays

    def share(self, device: torch.device) -> Share:
        """All vectors, as rank 0's share of a pass."""
        self.merge(device)
        nothing = np.empty(0, np.int64)
        return self._rows, [np.arange(self.n_clips), *[nothing] * (rank_and_size()[1] - 1)]

    def state_dict(self, device: torch.device) -> dict[str, Any]:
        """The vectors, for a checkpoint; all ranks must ask."""
        if not self.filled:
            return {}
        self.merge(device)
        return {"rows": torch.from_numpy(self._rows)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; on rank 0 alone, since the vectors may be gigabytes."""
        if state:
            self.fill(state["rows"].numpy() if rank_and_size()[0] == 0 else None)

"""The vectors of the whole set, in one place, or left where each process has made them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from decar.pretrain.embed import Share
from decar.pretrain.ranks import collect_rows, rank_and_size

Floats = NDArray[np.float32]
Label = Callable[[Floats], NDArray[np.int64]]  # vectors (n, P) to labels (n, H); is sent to all processes


@dataclass(frozen=True)
class Sample:
    """A request for the vectors of some clips, ascending."""

    index: NDArray[np.int64]


class Shards:
    """What a process does when rank 0 asks for vectors or labels (`ranks.conduct`).

    Args:
        embed: The pass: this process's rows, and who has which.
        device: Where the processes exchange tensors.
    """

    def __init__(self, embed: Callable[[], Share], device: torch.device) -> None:
        self._embed, self._device = embed, device
        self._share: Share | None = None

    def work(self, request: Sample | Label | None) -> Any:
        """On rank 0 all vectors `(N, P)` for None, those of a sample, or the labels `(N, H)` of all; else None."""
        if request is None:
            rows, places = self._embed()
            return collect_rows(rows, places, self._device)
        if isinstance(request, Sample):
            self._share = rows, places = self._embed()
            chosen = [np.isin(place, request.index) for place in places]
            to = [np.searchsorted(request.index, place[take]) for place, take in zip(places, chosen, strict=True)]
            return collect_rows(rows[chosen[rank_and_size()[0]]], to, self._device)
        assert self._share is not None
        rows, places = self._share
        return collect_rows(request(rows), places, self._device)

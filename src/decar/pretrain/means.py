"""Means over an epoch that a kill in the middle of it does not change: their sums go into checkpoints."""

from typing import Any

import torch
from torch import Tensor, distributed

from decar.pretrain.ranks import rank_and_size


class EpochMeans:
    """Running sums of a few figures of every step, over all processes in the end.

    Lightning's own means over an epoch begin anew in a run that was resumed within one.

    Args:
        names: Of the figures.
    """

    def __init__(self, *names: str) -> None:
        self.names = names
        self._sums: Tensor | None = None
        self._steps = 0

    def add(self, *values: Tensor) -> None:
        """The figures of one step, scalars; nothing here makes a GPU wait."""
        now = torch.stack([value.detach().float() for value in values])
        self._sums = now if self._sums is None else self._sums.to(now.device) + now
        self._steps += 1

    def take(self) -> dict[str, Tensor]:
        """The means over steps and processes; the next epoch begins."""
        assert self._sums is not None
        sums, steps, size = self._sums, self._steps, rank_and_size()[1]
        self._sums, self._steps = None, 0
        if size > 1:
            distributed.all_reduce(sums)
        return dict(zip(self.names, sums / (steps * size), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """The sums of every process: all must ask, also when one writes."""
        sums, size = self._sums, rank_and_size()[1]
        if sums is None:  # between two epochs, on all processes
            return {"sums": torch.zeros(1, len(self.names)), "steps": 0}
        every = [sums]
        if size > 1:
            every = [torch.zeros_like(sums) for _ in range(size)]
            distributed.all_gather(every, sums)
        return {"sums": torch.stack(every).cpu(), "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; with another number of processes each takes the mean."""
        rank, size = rank_and_size()
        sums, self._steps = state["sums"], int(state["steps"])
        self._sums = (sums[rank] if len(sums) == size else sums.mean(0)).clone() if self._steps else None

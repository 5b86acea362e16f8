"""Collective operations: what the processes (ranks) of a run exchange. In a single process they return their argument.

Every rank calls the same functions in the same order. Work that only rank 0 does, as whitening and clustering, goes
into `on_rank_zero`; work that each rank does for itself and that may fail goes into `failing_together`, so that no rank
waits for one that has left. A rank that is killed breaks the connection; `decar.cli.launch` then ends the job.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn

from decar.errors import DecarError, TrainingError

Result = TypeVar("Result")

_BLOCK = 2**16  # rows that `gather_rows` exchanges at once: rank 0 holds all rows once, and one block of each rank


def rank_and_size() -> tuple[int, int]:
    """The number of this process, from 0, and how many there are."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


@contextmanager
def failing_together() -> Iterator[None]:
    """Wait for all ranks at the end of the block, and raise on all of them if one failed in it.

    The block must not contain a collective operation.

    Raises:
        TrainingError: Another rank failed; its message is included. A rank that failed itself raises its own error.
    """
    try:
        yield
    except Exception as error:
        _failures(str(error) if isinstance(error, DecarError) else f"{type(error).__name__}: {error}")
        raise
    for rank, failure in enumerate(_failures("")):
        if failure:
            raise TrainingError(f"rank {rank} failed: {failure}")


def _failures(own: str) -> list[str]:
    """The message of each rank; empty where it did not fail."""
    return gather_values(own)


def on_rank_zero(make: Callable[[], Result]) -> Result:
    """Call `make` on rank 0 alone and return its result on all ranks, however long it takes.

    Raises:
        TrainingError: `make` failed; rank 0 itself raises the error of `make`.
    """
    result: Any = None
    with failing_together():
        if rank_and_size()[0] == 0:
            result = make()
    return cast(Result, broadcast(result))


@contextmanager
def rank_zero_first() -> Iterator[None]:
    """Run the block on rank 0, then on the other ranks, which find on disk what rank 0 has written.

    Raises:
        TrainingError: The block failed on another rank.
    """
    leads = rank_and_size()[0] == 0
    if not leads:
        _wait()
    with failing_together():
        yield
    if leads:
        _wait()


def _wait() -> None:
    """Take part in the turn of other ranks."""
    with failing_together():
        pass


def gather_values(own: Result) -> list[Result]:
    """The value of each rank, small objects that can be pickled, on all ranks."""
    size = rank_and_size()[1]
    values: list[Any] = [own] * size
    if size > 1:
        distributed.all_gather_object(values, own)
    return values


def broadcast(value: Result) -> Result:
    """Rank 0's value, any object that can be pickled, on all ranks."""
    box = [value]
    if rank_and_size()[1] > 1:
        distributed.broadcast_object_list(box, src=0)
    return box[0]


def gather_rows(rows: NDArray[Any], places: NDArray[np.int64]) -> NDArray[Any]:
    """Bring the rows of all ranks to rank 0, each to its place.

    Args:
        rows: `(n_r, P)` of this rank, of one dtype and `P` on all ranks.
        places: `(n_r,)`, where they belong. Over all ranks each of `0..N-1` occurs once.

    Returns:
        `(N, P)` on rank 0, `(0, P)` on the others. In a single process `rows` itself if it is in order.
    """
    rank, size = rank_and_size()
    if size == 1:
        in_order = np.array_equal(places, np.arange(len(rows)))  # then no copy: it may be gigabytes
        return rows if in_order else rows[np.argsort(places)]
    counts = [int(count) for count in all_gather(torch.tensor(len(rows), device=_device()))]
    out = np.empty((0 if rank else sum(counts), rows.shape[1]), rows.dtype)
    for start in range(0, max(counts), _BLOCK):
        there = [min(_BLOCK, max(0, count - start)) for count in counts]
        stretch = slice(start, start + _BLOCK)
        parts = _gather(places[stretch], there), _gather(rows[stretch], there)
        for place, part in zip(*parts, strict=True):
            out[place] = part
    return out


def _gather(block: NDArray[Any], lengths: list[int]) -> list[NDArray[Any]]:
    """The block of each rank on rank 0, nothing on the others; `lengths` are those of all ranks' blocks."""
    own = torch.from_numpy(block)
    padded = torch.zeros(max(lengths), *own.shape[1:], dtype=own.dtype, device=_device())
    padded[: len(own)] = own
    parts = None if rank_and_size()[0] else [torch.empty_like(padded) for _ in lengths]
    distributed.gather(padded, parts, dst=0)
    return [part[:length].cpu().numpy() for part, length in zip(parts or (), lengths, strict=False)]


def _device() -> str:
    """Where tensors must lie to be exchanged: NCCL has no operations on the CPU."""
    return "cuda" if "nccl" in distributed.get_backend() else "cpu"


def all_gather(share: Tensor) -> list[Tensor]:
    """The tensors of all ranks, which have one shape, on every rank."""
    size = rank_and_size()[1]
    if size == 1:
        return [share]
    parts = [torch.empty_like(share, memory_format=torch.contiguous_format) for _ in range(size)]
    distributed.all_gather(parts, share.contiguous())
    return parts


def gather_batch(share: Tensor) -> Tensor:
    """The whole batch `(B, …)` on every rank, from the shares `(B / size, …)` of `deal_batch`."""
    parts = all_gather(share)
    return share if len(parts) == 1 else torch.stack(parts, dim=1).flatten(0, 1)


def deal_batch(batch: Tensor) -> Tensor:
    """This rank's share `(B / size, …)` of a batch `(B, …)`: the item at place `p` goes to rank `p mod size`."""
    rank, size = rank_and_size()
    return batch if size == 1 else batch[rank::size].contiguous()


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()  # each rank's loss depends on this rank's part
        distributed.all_reduce(total)
        return total


def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum of a tensor of every rank; gradients flow through it."""
    return x if rank_and_size()[1] == 1 else cast(Tensor, _Sum.apply(x))


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of a tensor of every rank, without a gradient."""
    return sum_over_ranks(value.detach()) / rank_and_size()[1]


def max_over_ranks(*values: int) -> list[int]:
    """The highest of each value that any rank has."""
    if rank_and_size()[1] == 1:
        return [*values]
    highest = torch.tensor(values, device=_device())
    distributed.all_reduce(highest, distributed.ReduceOp.MAX)
    return [int(value) for value in highest.tolist()]


def share_buffers(module: nn.Module) -> None:
    """Give all ranks rank 0's buffers: BatchNorm's running statistics drift apart within an epoch."""
    if rank_and_size()[1] > 1:
        for buffer in module.buffers():
            distributed.broadcast(buffer, src=0)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace gradients by their mean over ranks: for parameters that DistributedDataParallel ignores."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if rank_and_size()[1] == 1 or not gradients:
        return
    flat = mean_over_ranks(torch.cat([gradient.reshape(-1) for gradient in gradients]))
    for gradient, part in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


class EpochMeans:
    """Means of a few figures over the steps of an epoch and all ranks; their sums go into checkpoints.

    Lightning's own means start again in a run that is resumed within an epoch.

    Args:
        names: Of the figures.
    """

    def __init__(self, *names: str) -> None:
        self.names = names
        self._sums: Tensor | None = None
        self._steps = 0

    def add(self, *values: Tensor) -> None:
        """Add the figures of one step, scalars, without waiting for the GPU."""
        now = torch.stack([value.detach().float() for value in values])
        self._sums = now if self._sums is None else self._sums.to(now.device) + now
        self._steps += 1

    def take(self) -> dict[str, Tensor]:
        """Return the means and start again. Collective."""
        assert self._sums is not None
        sums = sum_over_ranks(self._sums) / (self._steps * rank_and_size()[1])
        self._sums, self._steps = None, 0
        return dict(zip(self.names, sums, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """The sums of every rank, `(size, n)`. Collective, although only one rank writes them."""
        if self._sums is None:  # between two epochs, on all ranks
            return {"sums": torch.zeros(1, len(self.names)), "steps": 0}
        return {"sums": torch.stack(all_gather(self._sums)).cpu(), "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from there; with another number of ranks each takes the mean."""
        rank, size = rank_and_size()
        sums, self._steps = state["sums"], int(state["steps"])
        self._sums = (sums[rank] if len(sums) == size else sums.mean(0)).clone() if self._steps else None

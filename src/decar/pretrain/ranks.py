"""What the processes (ranks) of a run say to one another. With one process nothing is said and nothing costs.

Whitening and clustering run on rank 0 alone; all ranks take part in the passes through the network that they need.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn

from decar.errors import DecarError, TrainingError

Work = TypeVar("Work")
Result = TypeVar("Result")


def rank_and_size() -> tuple[int, int]:
    """This process's number, and how many there are."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def conduct(lead: Callable[[Callable[[Any], Work]], Result], work: Callable[[Any], Work]) -> Result:
    """Run `lead(work)` on rank 0; the other ranks join in each `work(request)` that it calls, and get what it returns.

    Args:
        lead: Runs on rank 0 only; what it is given calls `work` on all ranks.
        work: Has collective parts; what it returns counts on rank 0.

    Raises:
        DecarError: `lead` failed; the other ranks fail with its message instead of waiting for ever.
    """
    rank, size = rank_and_size()
    if size == 1:
        return lead(work)
    if rank:
        followed: Result = _follow(work)
        return followed

    def together(request: Any) -> Work:
        _say("work", request)
        return work(request)

    try:
        result = lead(together)
    except Exception as error:
        _say("failed", f"{type(error).__name__}: {error}" if not isinstance(error, DecarError) else str(error))
        raise
    _say("done", result)
    return result


def agree(make: Callable[[], Result]) -> Result:
    """What `make` gives on rank 0, on all ranks."""
    return conduct(lambda _: make(), _nothing)


def one_then_all(make: Callable[[], Result]) -> Result:
    """Call `make` on rank 0, and when it is done there on the others: it leaves on the disk what they need too."""
    made: list[Result] = []
    conduct(lambda _: made.append(make()), _nothing)
    return made[0] if made else make()


def _nothing(request: Any) -> None:
    """No work to share."""


def _follow(work: Callable[[Any], Any]) -> Any:
    while True:
        word, value = _say()
        if word == "work":
            work(value)
        elif word == "failed":
            raise TrainingError(f"rank 0 failed: {value}")
        else:
            return value


def _say(word: str = "", value: Any = None) -> tuple[str, Any]:
    """Rank 0 speaks, the others listen (what they give is not looked at)."""
    message: list[tuple[str, Any] | None] = [(word, value)]
    distributed.broadcast_object_list(message, src=0)
    heard = message[0]
    assert heard is not None
    return heard[0], heard[1]


def collect_rows(rows: NDArray[Any], places: Sequence[NDArray[np.int64]], device: torch.device) -> Any:
    """Bring rows that each rank has made to rank 0, each to its place.

    Args:
        rows: `(n_r, P)`, made by this rank, of one dtype on all.
        places: For each rank, `(n_r,)`: where its rows belong. Together every place of `0..N-1` once.
        device: Where the processes exchange tensors: the GPU with NCCL.

    Returns:
        `(N, P)` on rank 0, None on the others.
    """
    rank, size = rank_and_size()
    if size == 1:
        there = np.array_equal(places[0], np.arange(len(rows)))  # then no copy: it may be gigabytes
        return rows if there else rows[np.argsort(places[0], kind="stable")]
    longest, total = max(map(len, places)), sum(map(len, places))
    mine = torch.zeros(longest, rows.shape[1], dtype=torch.from_numpy(rows[:0]).dtype, device=device)
    mine[: len(rows)] = torch.from_numpy(rows).to(device)
    parts = [torch.empty_like(mine) for _ in range(size)] if rank == 0 else None
    distributed.gather(mine, parts, dst=0)
    if parts is None:
        return None
    out = np.empty((total, rows.shape[1]), rows.dtype)
    for place, part in zip(places, parts, strict=True):
        out[place] = part[: len(place)].cpu().numpy()
    return out


def gather_batch(share: Tensor) -> Tensor:
    """The batch `(B, …)` that was dealt out in turn to the ranks, in its order, from every rank's `(B / size, …)`."""
    size = rank_and_size()[1]
    if size == 1:
        return share
    parts = [torch.empty_like(share, memory_format=torch.contiguous_format) for _ in range(size)]
    distributed.all_gather(parts, share.contiguous())
    return torch.stack(parts, dim=1).flatten(0, 1)


def deal_batch(batch: Tensor) -> Tensor:
    """This rank's share `(B / size, …)` of a batch `(B, …)`."""
    rank, size = rank_and_size()
    return batch if size == 1 else batch[rank::size].contiguous()


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of a value that each rank has, without a gradient."""
    size = rank_and_size()[1]
    if size == 1:
        return value.detach()
    total = value.detach().clone()
    distributed.all_reduce(total)
    return total / size


def share_buffers(module: nn.Module) -> None:
    """Give all ranks rank 0's buffers: BatchNorm's running statistics drift apart within an epoch."""
    if rank_and_size()[1] > 1:
        for buffer in module.buffers():
            distributed.broadcast(buffer, src=0)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace gradients by their mean over ranks: for parameters that DistributedDataParallel does not look after."""
    size = rank_and_size()[1]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if size == 1 or not gradients:
        return
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= size
    for gradient, part in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))

"""Embedding: log-mels of any length → vectors. The one place that defines the vector of a long clip.

Letters: `B` batch, `M` mel bands, `F` frames, `D` width of a vector, `N` clips.
"""

import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from decar.audio import FrontEnd, LogMelStore
from decar.audio.crops import Frames, length_batches, packed, padded_frames, pieces, stack
from decar.audio.progress import progress_bar
from decar.clustering import l2_normalize

log = logging.getLogger(__name__)

PIECES_AT_ONCE = 64  # largest batch of 10 s pieces in `Encoder.embed` and in the full-dataset pass of training
IN_MEMORY = 2**30  # bytes of vectors; more go to a file, whose pages the system can drop when memory is short

Forward = Callable[[Tensor], Tensor]


class Padding(Protocol):
    """The attributes of an `Encoder` that say how pieces are padded."""

    frontend: FrontEnd
    min_frames: int
    max_frames: int


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """No gradients and eval mode; afterwards each submodule has its own train/eval flag back."""
    flags = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():  # not inference_mode: parameters made inside that cannot be trained
            yield
    finally:
        for part, training in flags:
            part.training = training


def _bounds(padding: Padding) -> dict[str, int]:
    return {
        "min_frames": padding.min_frames, "max_frames": padding.max_frames, "multiple": padding.frontend.multiple,
    }  # fmt: skip


def embed_pieces(forward: Forward, mels: Sequence[Frames], padding: Padding, batch_size: int) -> Tensor:
    """`(n, D)` float32 on the CPU: a vector for each log-mel `(F, M)` of at most `max_frames`, batched by length.

    Args:
        forward: From log-mels `(B, 1, M, F)` on the CPU to vectors `(B, D)`.
        mels: At least one.
        padding: The encoder.
        batch_size: `B` at most.
    """
    bounds = _bounds(padding)
    out: Tensor | None = None
    for batch in length_batches(np.array([len(mel) for mel in mels], np.int64), batch_size, **bounds):
        frames = padded_frames(len(mels[batch[0]]), **bounds)
        vectors = forward(stack([mels[i] for i in batch], frames, padding.frontend.silence)).float().cpu()
        if len(batch) == len(mels):  # the usual case: no copy
            return vectors
        if out is None:
            out = vectors.new_empty(len(mels), vectors.shape[1])
        out[torch.from_numpy(batch)] = vectors
    assert out is not None
    return out


def embed_clips(forward: Forward, mels: Sequence[Frames], padding: Padding, batch_size: int) -> Tensor:
    """The vector of each clip, `(n, D)` float32 on the CPU.

    A clip longer than `max_frames` is cut into pieces of that length, end to end; its vector is the mean of theirs,
    weighted by their frames. The last piece is as short as it comes, and padded with silence like a clip of its length.
    Arguments are those of `embed_pieces`, with log-mels of any length.
    """
    cuts = [pieces(len(mel), padding.max_frames) for mel in mels]
    every = [mel[cut] for mel, cuts_of_mel in zip(mels, cuts, strict=True) for cut in cuts_of_mel]
    vectors = embed_pieces(forward, every, padding, batch_size)
    if len(vectors) == len(mels):
        return vectors
    owner = torch.from_numpy(np.repeat(np.arange(len(mels)), [len(cuts_of_mel) for cuts_of_mel in cuts]))
    frames = torch.tensor([len(piece) for piece in every], dtype=torch.float64)
    total = vectors.new_zeros(len(mels), vectors.shape[1], dtype=torch.float64)
    total.index_add_(0, owner, vectors.double() * frames[:, None])  # exact for a clip of one piece
    weight = total.new_zeros(len(mels)).index_add_(0, owner, frames)
    return (total / weight.clamp_min(1)[:, None]).float()


def batches_by_length(
    store: LogMelStore, indices: NDArray[np.int64], padding: Padding, batch_size: int
) -> list[NDArray[np.int64]]:
    """Cut `indices` of a store into batches whose clips share one padded length.

    Clips of several pieces come first, in batches of `batch_size` pieces, or of one clip that has more.
    """
    lengths, bound = store.lengths[indices], padding.max_frames
    long, short = np.flatnonzero(lengths > bound), np.flatnonzero(lengths <= bound)
    counts = -(-lengths // bound)
    groups = [np.array(group) for group in packed(long.tolist(), lambda i: int(counts[i]), batch_size)]
    shared = length_batches(lengths[short], batch_size, **_bounds(padding))
    return [indices[group] for group in [*groups, *(short[group] for group in shared)]]


def run_pass(
    forward: Forward,
    store: LogMelStore,
    padding: Padding,
    *,
    dim: int,
    batch_size: int,
    title: str,
    progress: bool = True,
    batches: Sequence[NDArray[np.int64]] | None = None,
) -> NDArray[np.float32]:
    """The full-dataset pass: `embed_clips` of a whole store. Train and eval modes are up to the caller.

    Args:
        forward: From log-mels `(B, 1, M, F)` on the CPU to vectors `(B, D)`.
        store: `N` clips.
        padding: The encoder.
        dim: `D`.
        batch_size: Pieces at a time.
        title: Of the progress bar.
        progress: Whether to show one.
        batches: Only these clips, in these batches: one process's share of a pass.

    Returns:
        `(N, D)` in store order; with `batches` a row for each of their clips, in their order.
    """
    if batches is None:
        batches = batches_by_length(store, np.arange(len(store)), padding, batch_size)
        rows = np.concatenate(batches)
    else:
        rows = np.arange(sum(map(len, batches)))
    out, done = room_for(len(rows), dim, store), 0
    with progress_bar(title, len(rows), enabled=progress) as advance:
        for batch in batches:
            vectors = embed_clips(forward, [store[int(i)] for i in batch], padding, batch_size)
            out[rows[done : done + len(batch)]] = vectors.numpy()
            done += len(batch)
            advance(len(batch))
    return out


def room_for(n: int, dim: int, store: LogMelStore) -> NDArray[np.float32]:
    """An array `(n, dim)` to fill: in memory or, above 1 GiB, in a file without a name.

    The file lies beside the store, else in the system's temporary folder; it is gone with the array. Its space is
    reserved at once, since a memory map that meets a full disk later kills the process.
    """
    size = 4 * n * dim
    if size <= IN_MEMORY:
        return np.empty((n, dim), np.float32)
    beside = Path(store.mel.filename).parent if isinstance(store.mel, np.memmap) and store.mel.filename else None
    for folder in (beside, None):
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                os.posix_fallocate(file.fileno(), 0, size)
                return np.memmap(file, np.float32, "r+", shape=(n, dim))
        except (OSError, AttributeError) as error:  # the second: a system without posix_fallocate
            reason = error
    log.warning("%.1f GB of vectors stay in memory: no room for them on disk (%s)", size / 1e9, reason)
    return np.empty((n, dim), np.float32)


def standardiser(blocks: Iterable[NDArray[Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean `(D,)` and factor `(D,)` that give every column zero mean and unit variance: `(x - mean) * factor`.

    The factor of a constant column is 0. `StandardScaler` takes 1, with which a unit that was silent on these rows
    would dominate the distance to any row on which it is not.

    Args:
        blocks: The rows, in one or more blocks `(n, D)`; they are read once.
    """
    n, mean, squares = 0, np.zeros(1), np.zeros(1)
    for block in blocks:
        wide = block.astype(np.float64)
        centre, total = wide.mean(axis=0), n + len(wide)
        # the sums of squares of two sets about their joint mean (Chan, Golub and LeVeque, 1983)
        squares = squares + ((wide - centre) ** 2).sum(axis=0) + (centre - mean) ** 2 * (n * len(wide) / total)
        mean = mean + (centre - mean) * (len(wide) / total)
        n = total
    deviation = np.sqrt(squares / n)
    varies = deviation > 1e-6 * np.maximum(1e-6, np.abs(mean))  # not just float32 rounding of a constant
    return mean, np.divide(1.0, deviation, out=np.zeros_like(deviation), where=varies)


def standardised(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """`(N, D)`, each column with mean 0 and deviation 1 (0 where it is constant), rows then of length 1."""
    mean, scale = standardiser([vectors])
    return l2_normalize((vectors - mean) * scale)

"""The pass over a whole set: every clip, whole, once, in the order of the data set."""

import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decar.audio import LogMelStore
from decar.audio.crops import length_batches, packed
from decar.audio.progress import progress_bar
from decar.models.encoder import Encoder, evaluating
from decar.models.pieces import clip_vectors

log = logging.getLogger(__name__)

IN_MEMORY = 2**30  # bytes of vectors; more lie in a file, which the system may write out when memory is short


def batches_by_length(
    store: LogMelStore, indices: NDArray[np.int64], encoder: Encoder, batch_size: int
) -> list[NDArray[np.int64]]:
    """Cut `indices` of a store into batches whose clips share one padded length: none is padded to its neighbours.

    Clips of several pieces come first, in batches of `batch_size` pieces, or of one clip that has more.
    """
    lengths, bound = store.lengths[indices], encoder.max_frames
    long = np.flatnonzero(lengths > bound)
    counts = -(-lengths // bound)
    groups = [np.array(group) for group in packed(long.tolist(), lambda i: int(counts[i]), batch_size)]
    short = np.flatnonzero(lengths <= bound)
    shared = length_batches(lengths[short], batch_size, min_frames=encoder.min_frames, max_frames=bound)
    return [indices[group] for group in groups] + [indices[short[group]] for group in shared]


def run_pass(
    forward: Callable[[Tensor], Tensor],
    store: LogMelStore,
    encoder: Encoder,
    *,
    dim: int,
    batch_size: int,
    title: str,
    progress: bool = True,
    batches: Sequence[NDArray[np.int64]] | None = None,
) -> NDArray[np.float32]:
    """The `clip_vectors` of a whole store: `(N, dim)` in store order. Train and eval modes are up to the caller.

    Args:
        forward: From log-mels `(B, 1, M, F)` on the CPU to vectors `(B, dim)`.
        store: `N` clips.
        encoder: Says how clips are padded.
        dim: Width of what comes out.
        batch_size: Pieces at a time.
        title: What the progress bar says.
        progress: Whether there is one.
        batches: Only these clips, in these batches, where a pass is divided; one row each, in their order.
    """
    if batches is None:
        every = batches_by_length(store, np.arange(len(store)), encoder, batch_size)
        rows = np.concatenate(every)
    else:
        every, rows = list(batches), np.arange(sum(map(len, batches)))
    out, done = room_for(len(rows), dim, store), 0
    with progress_bar(title, len(rows), enabled=progress) as advance:
        for batch in every:
            vectors = clip_vectors(forward, [store[int(i)] for i in batch], encoder, batch_size)
            out[rows[done : done + len(batch)]] = vectors.numpy()
            done += len(batch)
            advance(len(batch))
    return out


def room_for(n: int, dim: int, store: LogMelStore) -> NDArray[np.float32]:
    """An array `(n, dim)` to fill: in memory or, where that would take more than 1 GiB, in a file without a name.

    The file lies beside the store, else where the system keeps temporary ones; it is gone with the array. Its room is
    taken at once, since a memory map that meets a full disk later ends the process.
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


def encode_store(
    encoder: Encoder,
    store: LogMelStore,
    *,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> NDArray[np.float32]:
    """Embed every clip of a store: `(N, D)` in store order, encoder in eval mode, its train/eval flag restored."""
    home = next(encoder.parameters()).device
    encoder.to(device)
    with evaluating(encoder):
        out = run_pass(
            lambda clips: encoder(clips.to(device)), store, encoder,
            dim=encoder.dim, batch_size=batch_size, title="embed", progress=progress,
        )  # fmt: skip
    encoder.to(home)
    return out

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
from decar.audio.crops import Frames, centre_piece, length_batches, padded_frames, stack
from decar.audio.progress import progress_bar
from decar.models.encoder import Encoder, evaluating

log = logging.getLogger(__name__)

IN_MEMORY = 2**30  # bytes of vectors; more lie in a file, which the system may write out when memory is short


def batches_by_length(
    store: LogMelStore, indices: NDArray[np.int64], encoder: Encoder, batch_size: int
) -> list[NDArray[np.int64]]:
    """Cut `indices` of a store into batches whose clips share one padded length: none is padded to its neighbours."""
    groups = length_batches(
        store.lengths[indices], batch_size, min_frames=encoder.min_frames, max_frames=encoder.max_frames
    )
    return [indices[group] for group in groups]


def whole_clips(store: LogMelStore, batch: NDArray[np.int64], encoder: Encoder) -> Tensor:
    """The clips of one such batch, whole, as `(B, 1, M, F)` float32."""
    return padded_batch([store[int(i)] for i in batch], encoder)


def padded_batch(mels: Sequence[Frames], encoder: Encoder) -> Tensor:
    """Log-mels `(F, M)` of one padded length, as `Encoder.embed` pads and cuts them: `(B, 1, M, F)` float32."""
    frames = padded_frames(len(mels[0]), min_frames=encoder.min_frames, max_frames=encoder.max_frames)
    return stack([centre_piece(mel, frames) for mel in mels], frames, encoder.frontend.silence)


def embed_long(encoder: Encoder, waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """`(D,)` of a mono waveform `(T,)` of any length: the mean of its pieces, by their frames.

    Pieces are as long as the encoder takes and lie end to end; no last one is shorter than a window.
    """
    front = encoder.frontend
    step = encoder.max_frames * front.hop_length
    size = step - front.hop_length + front.win_length
    least = size - step + front.win_length
    pieces = [waveform[start : start + size] for start in (0, *range(step, len(waveform) - least + 1, step))]
    weights = [max(1, front.n_frames(len(piece))) for piece in pieces]
    vectors = [encoder.embed(torch.from_numpy(piece)[None])[0].double().cpu().numpy() for piece in pieces]
    return np.average(vectors, axis=0, weights=weights).astype(np.float32)


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
    """Every clip of a store through `forward`, whole, once: `(N, dim)` in store order. Modes are the caller's affair.

    Args:
        forward: From log-mels `(B, 1, M, F)` on the CPU to vectors `(B, dim)`.
        store: `N` clips.
        encoder: Says how clips are padded.
        dim: Width of what comes out.
        batch_size: Clips at a time.
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
            out[rows[done : done + len(batch)]] = forward(whole_clips(store, batch, encoder)).float().cpu().numpy()
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

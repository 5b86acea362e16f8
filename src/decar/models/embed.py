"""Embedding: log-mels of any length → vectors. The one place that defines the vector of a long clip.

Letters: `B` batch, `M` mel bands, `F` frames, `D` width of a vector, `N` clips.
"""

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from decar.audio import FrontEnd, LogMelStore
from decar.audio.crops import Frames, as_input, length_batches, packed, padded_frames, pieces, stack
from decar.audio.parallel import in_order
from decar.audio.progress import progress_bar
from decar.clustering import l2_normalize
from decar.clustering.base import room

log = logging.getLogger(__name__)

PIECES_AT_ONCE = 64  # largest batch of 10 s pieces in `Encoder.embed` and in the full-dataset pass of training
READ_AHEAD = 2**26  # bytes of log-mels that wait for the network: a few batches of 10 s pieces
BEGUN = 2  # batches that a GPU has been given beside the one whose vectors are waited for

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


@dataclass(frozen=True)
class _Part:
    """Log-mels of one padded length, ready for the network.

    Attributes:
        rows: Which of the log-mels these are.
        mels: `(B, F, M)` as `stack` has made them.
        frames: `(B,)`, those that each has.
    """

    rows: NDArray[np.int64]
    mels: Tensor
    frames: Tensor

    def on(self, device: torch.device, silence: float) -> Tensor:
        """`(B, 1, M, F)` float32 on a device; the copy to a GPU does not wait."""
        return as_input(self.mels.to(device, non_blocking=True), self.frames.to(device, non_blocking=True), silence)


def _parts(mels: Sequence[Frames], padding: Padding, batch_size: int, *, pin: bool = False) -> Iterator[_Part]:
    """Batches by length of log-mels `(F, M)` of at most `max_frames`."""
    bounds = _bounds(padding)
    for rows in length_batches(np.array([len(mel) for mel in mels], np.int64), batch_size, **bounds):
        yield _Part(rows, *stack([mels[i] for i in rows], padded_frames(len(mels[rows[0]]), **bounds), pin=pin))


def _in_order(parts: Sequence[tuple[NDArray[np.int64], Tensor]]) -> Tensor:
    """The vectors of all parts, each in its row."""
    if len(parts) == 1:  # the usual case: no copy
        return parts[0][1]
    vectors = torch.cat([made for _, made in parts])
    out = torch.empty_like(vectors)
    out[torch.from_numpy(np.concatenate([rows for rows, _ in parts]))] = vectors
    return out


def embed_pieces(forward: Forward, mels: Sequence[Frames], padding: Padding, batch_size: int) -> Tensor:
    """`(n, D)` float32 on the CPU: a vector for each log-mel `(F, M)` of at most `max_frames`, batched by length.

    Args:
        forward: From log-mels `(B, 1, M, F)` on the CPU to vectors `(B, D)`.
        mels: At least one.
        padding: The encoder.
        batch_size: `B` at most.
    """
    cpu, silence = torch.device("cpu"), padding.frontend.silence
    parts = _parts(mels, padding, batch_size)
    return _in_order([(part.rows, forward(part.on(cpu, silence)).float().cpu()) for part in parts])


def embed_clips(forward: Forward, mels: Sequence[Frames], padding: Padding, batch_size: int) -> Tensor:
    """The vector of each clip, `(n, D)` float32 on the CPU.

    A clip longer than `max_frames` is cut into pieces of that length, end to end; its vector is the mean of theirs,
    weighted by their frames. The last piece is as short as it comes, and padded with silence like a clip of its length.
    Arguments are those of `embed_pieces`, with log-mels of any length.
    """
    every, owner = _cut(mels, padding.max_frames)
    return _of_clips(embed_pieces(forward, every, padding, batch_size), [len(piece) for piece in every], owner)


def _cut(mels: Sequence[Frames], max_frames: int) -> tuple[list[Frames], NDArray[np.int64]]:
    """The pieces of all clips, and the clip of each."""
    cuts = [pieces(len(mel), max_frames) for mel in mels]
    every = [mel[cut] for mel, cuts_of_mel in zip(mels, cuts, strict=True) for cut in cuts_of_mel]
    return every, np.repeat(np.arange(len(mels)), [len(cuts_of_mel) for cuts_of_mel in cuts])


def _of_clips(vectors: Tensor, lengths: Sequence[int], owner: NDArray[np.int64]) -> Tensor:
    """Vectors of pieces to vectors of clips: means, weighted by the frames of the pieces.

    Args:
        vectors: `(n, D)`, one a piece.
        lengths: Frames of each piece.
        owner: `(n,)`, the clip of each piece, ascending; each clip has one at least.
    """
    n = int(owner[-1]) + 1
    if len(vectors) == n:
        return vectors
    clip, frames = torch.from_numpy(owner), torch.tensor(lengths, dtype=torch.float64)
    total = vectors.new_zeros(n, vectors.shape[1], dtype=torch.float64)
    total.index_add_(0, clip, vectors.double() * frames[:, None])  # exact for a clip of one piece
    weight = total.new_zeros(n).index_add_(0, clip, frames)
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
    device: str | torch.device = "cpu",
    progress: bool = True,
    batches: Sequence[NDArray[np.int64]] | None = None,
) -> NDArray[np.float32]:
    """The full-dataset pass: `embed_clips` of a whole store. Train and eval modes are up to the caller.

    A thread reads the next batches. Vectors leave a GPU while it computes the next ones; nothing waits for a batch that
    has only just begun.

    Args:
        forward: From log-mels `(B, 1, M, F)` on the device to vectors `(B, D)` there.
        store: `N` clips.
        padding: The encoder.
        dim: `D`.
        batch_size: Pieces at a time.
        title: Of the progress bar.
        device: Of the network.
        progress: Whether to show a bar.
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
    store.advise("sequential")
    made = closing(_vectors_of(forward, store, padding, batches, batch_size, torch.device(device)))
    with made as found, progress_bar(title, len(rows), enabled=progress) as advance:
        for vectors in found:
            out[rows[done : done + len(vectors)]] = vectors.numpy()
            done += len(vectors)
            advance(len(vectors))
    return out


def _vectors_of(
    forward: Forward,
    store: LogMelStore,
    padding: Padding,
    batches: Sequence[NDArray[np.int64]],
    batch_size: int,
    device: torch.device,
) -> Generator[Tensor, None, None]:
    """The vectors of each batch of clips, in order, on the CPU."""

    def read(batch: NDArray[np.int64]) -> Iterator[tuple[list[_Part], list[int], NDArray[np.int64]]]:
        every, owner = _cut([store[int(i)] for i in batch], padding.max_frames)
        parts = [*_parts(every, padding, batch_size, pin=device.type == "cuda")]
        yield parts, [len(piece) for piece in every], owner

    begun: deque[Callable[[], Tensor]] = deque()
    with closing(in_order(read, batches, 1, room=READ_AHEAD, size=lambda found: _bytes(found[0]))) as ready:
        for parts, lengths, owner in ready:
            leaving = [(part.rows, _leaving(forward(part.on(device, padding.frontend.silence)))) for part in parts]
            begun.append(partial(_arrived, leaving, lengths, owner))
            if len(begun) > BEGUN:
                yield begun.popleft()()
    while begun:
        yield begun.popleft()()


def _bytes(parts: Sequence[_Part]) -> int:
    return sum(part.mels.nbytes for part in parts)


def _arrived(
    leaving: Sequence[tuple[NDArray[np.int64], Callable[[], Tensor]]], lengths: list[int], owner: NDArray[np.int64]
) -> Tensor:
    """The vectors of a batch of clips, once those of its pieces have come from the device."""
    return _of_clips(_in_order([(rows, wait()) for rows, wait in leaving]), lengths, owner)


def _leaving(vectors: Tensor) -> Callable[[], Tensor]:
    """Start to copy vectors to the CPU; what is returned waits for the end of that, and for nothing begun later."""
    wide = vectors.float()
    if not wide.is_cuda:
        return wide.cpu
    there = torch.empty(wide.shape, dtype=wide.dtype, pin_memory=True)
    there.copy_(wide, non_blocking=True)
    copied = torch.cuda.current_stream(wide.device).record_event()  # not of the current device, which may be another

    def wait() -> Tensor:
        copied.synchronize()
        return there

    return wait


def room_for(n: int, dim: int, store: LogMelStore) -> NDArray[np.float32]:
    """An array `(n, dim)` to fill, see `decar.clustering.base.room`; a file lies beside the store."""
    named = isinstance(store.mel, np.memmap) and store.mel.filename
    return room(n, dim, Path(named).parent if named else None)


def standardiser(
    blocks: Iterable[NDArray[Any]], *, share: float = 0.0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean `(D,)` and factor `(D,)` that give every column zero mean and unit variance: `(x - mean) * factor`.

    The factor of a constant column is 0. `StandardScaler` takes 1, with which a unit that was silent on these rows
    would dominate the distance to any row on which it is not.

    Args:
        blocks: The rows, in one or more blocks `(n, D)`; they are read once.
        share: Of the mean variance of all columns, added to each variance: the larger, the less a column of small
            values counts.
    """
    n, mean, squares = 0, np.zeros(1), np.zeros(1)
    for block in blocks:
        wide = block.astype(np.float64)
        centre, total = wide.mean(axis=0), n + len(wide)
        # the sums of squares of two sets about their joint mean (Chan, Golub and LeVeque, 1983)
        squares = squares + ((wide - centre) ** 2).sum(axis=0) + (centre - mean) ** 2 * (n * len(wide) / total)
        mean = mean + (centre - mean) * (len(wide) / total)
        n = total
    variance = squares / n
    varies = np.sqrt(variance) > 1e-6 * np.maximum(1e-6, np.abs(mean))  # not just float32 rounding of a constant
    root = np.sqrt(variance + share * variance.mean())
    return mean, np.divide(1.0, root, out=np.zeros_like(root), where=varies)


def half_standardiser(blocks: Iterable[NDArray[Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """As `standardiser`, for distances: a column of a variance far below the mean of all counts little.

    Standardised, a column counts as much as any other, and neighbours are worse than by the vectors as they are; a
    readout, whose numbers are small on purpose, makes them worse still (docs/recipe.md).
    """
    return standardiser(blocks, share=1.0)


def half_standardised(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """`(N, D)`, by `half_standardiser`, rows then of length 1."""
    mean, scale = half_standardiser([vectors])
    return l2_normalize((vectors - mean) * scale)

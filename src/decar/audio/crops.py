"""Clip → the pieces of it that enter a batch: random, or all of it end to end; padded with silence, never with 0.0."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar, overload

import numpy as np
import numpy.typing as npt
import torch

Frames = npt.NDArray[np.float16] | npt.NDArray[np.float32]
Item = TypeVar("Item")


@overload
def padded_frames(frames: int, *, min_frames: int = ..., max_frames: int = ..., multiple: int = ...) -> int: ...
@overload
def padded_frames(
    frames: npt.NDArray[np.int64], *, min_frames: int = ..., max_frames: int = ..., multiple: int = ...
) -> npt.NDArray[np.int64]: ...
def padded_frames(
    frames: int | npt.NDArray[np.int64], *, min_frames: int = 98, max_frames: int = 998, multiple: int = 32
) -> int | npt.NDArray[np.int64]:
    """How many frames a piece of F frames is padded to when it is embedded.

    It depends on that clip alone: padded to the longest of its batch, a clip's embedding would depend on its
    neighbours.

    Args:
        frames: F, one number or an array of them.
        min_frames: clips up to this are padded to it; 98 is 1 s.
        max_frames: nothing is padded beyond it; longer clips are cut into pieces of it (`pieces`). 998 is 10 s.
        multiple: lengths in between are rounded up to one of its multiples, so that a few lengths serve all clips.
    """
    given = np.asarray(frames, np.int64)
    rounded = np.where(given <= min_frames, min_frames, -(-given // multiple) * multiple)
    padded = np.minimum(rounded, max_frames)
    return padded if isinstance(frames, np.ndarray) else int(padded)


def random_crop(mel: Frames, frames: int, rng: np.random.Generator, *, silence: float) -> npt.NDArray[np.float32]:
    """(F, M) → (frames, M) float32 from a uniformly random place; a shorter clip gets `silence` at its end."""
    first = int(rng.integers(max(len(mel) - frames, 0) + 1))
    return _padded(mel[first : first + frames], frames, silence)


def pieces(frames: int, max_frames: int) -> list[slice]:
    """Where a clip of F frames is cut into pieces of `max_frames`: end to end, the last as short as it comes.

    >>> pieces(25, 10), pieces(10, 10), pieces(0, 10)
    ([slice(0, 10, None), slice(10, 20, None), slice(20, 25, None)], [slice(0, 10, None)], [slice(0, 0, None)])
    """
    return [slice(first, min(first + max_frames, frames)) for first in range(0, max(frames, 1), max_frames)]


def _padded(piece: Frames, frames: int, silence: float) -> npt.NDArray[np.float32]:
    out = np.full((frames, piece.shape[1]), silence, np.float32)
    out[: len(piece)] = piece
    return out


def length_batches(
    lengths: npt.NDArray[np.int64], batch_size: int, *, min_frames: int = 98, max_frames: int = 998, multiple: int = 32
) -> list[npt.NDArray[np.int64]]:
    """Indices of clips, batch by batch, such that all clips of a batch share one padded length; each index once.

    Args:
        lengths: (N,) frames of each clip.
        batch_size: clips in a batch, at most.
        min_frames: as in `padded_frames`.
        max_frames: as in `padded_frames`.
        multiple: as in `padded_frames`.

    Returns:
        Longest first, so that a batch too large for the memory fails at once; equal lengths in the order of their
        index.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    bounds = {"min_frames": min_frames, "max_frames": max_frames, "multiple": multiple}
    padded = padded_frames(np.asarray(lengths, np.int64), **bounds)
    batches = []
    for length in np.unique(padded)[::-1]:
        members = np.flatnonzero(padded == length)
        batches += [members[i : i + batch_size] for i in range(0, len(members), batch_size)]
    return batches


def packed(
    items: Iterable[Item], weight: Callable[[Item], int], room: int, *, most: int | None = None
) -> Iterator[list[Item]]:
    """Greedily group consecutive items: a group weighs `room` and holds `most` at most; a heavier item is alone."""
    group: list[Item] = []
    total = 0
    for item in items:
        heavy = weight(item)
        if group and (len(group) == most or total + heavy > room):
            yield group
            group, total = [], 0
        group.append(item)
        total += heavy
    if group:
        yield group


def collate(crops: Sequence[Frames]) -> torch.Tensor:
    """B crops of (F, M), all of one length → (B, 1, M, F) float32, as the encoder takes them."""
    shapes = {crop.shape for crop in crops}
    if len(shapes) != 1:
        raise ValueError(f"a batch needs crops of one shape, got {sorted(shapes)}")
    return as_input(*stack(crops, shapes.pop()[0]), 0.0)


def stack(pieces: Sequence[Frames], frames: int, *, pin: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """B pieces of (F, M), F up to `frames` → (B, frames, M) of their own type, and (B,) the frames that each has.

    What lies behind a short piece is for `as_input` to fill.

    Args:
        pieces: at least one, of one type.
        frames: of the batch.
        pin: in page-locked memory, from which a GPU copies while the CPU goes on.
    """
    kind = torch.from_numpy(np.empty(0, np.asarray(pieces[0]).dtype)).dtype  # loaders make tensors of arrays
    batch = torch.empty(len(pieces), frames, pieces[0].shape[1], dtype=kind, pin_memory=pin)
    for row, piece in zip(batch.numpy(), pieces, strict=True):
        row[: len(piece)] = piece
        row[len(piece) :] = 0
    return batch, torch.tensor([len(piece) for piece in pieces], pin_memory=pin)


def as_input(mels: torch.Tensor, frames: torch.Tensor, silence: float) -> torch.Tensor:
    """What `stack` has made → (B, 1, M, F) float32 as the encoder takes it, `silence` behind short pieces.

    It is computed where `mels` is: a GPU gets half the bytes, and converts them faster than a CPU core.
    """
    wide = mels.transpose(1, 2).contiguous().to(torch.float32, copy=True)  # in this order: half the bytes to turn over
    if wide.is_cuda or bool((frames < wide.shape[2]).any()):  # on a GPU, looking would make the CPU wait for it
        places = torch.arange(wide.shape[2], device=wide.device)
        wide.masked_fill_((places >= frames[:, None].to(wide.device))[:, None], silence)
    return wide[:, None]

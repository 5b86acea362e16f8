"""Log-mels of any length → one vector a clip. The one place that says what the vector of a long clip is.

Letters: `B` batch, `M` mel bands, `F` frames, `D` width of a vector.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from decar.audio import FrontEnd
from decar.audio.crops import Frames, length_batches, padded_frames, pieces, stack


class TakesPieces(Protocol):
    """What is asked of an encoder here: how long its inputs are, and what silence is."""

    frontend: FrontEnd
    min_frames: int
    max_frames: int


def padded_batch(mels: Sequence[Frames], encoder: TakesPieces) -> Tensor:
    """Log-mels `(F, M)` of one padded length, at most `max_frames`: `(B, 1, M, F)` float32."""
    frames = padded_frames(len(mels[0]), min_frames=encoder.min_frames, max_frames=encoder.max_frames)
    return stack(mels, frames, encoder.frontend.silence)


def piece_vectors(
    forward: Callable[[Tensor], Tensor], mels: Sequence[Frames], encoder: TakesPieces, batch_size: int
) -> Tensor:
    """`(n, D)` float32 on the CPU: a vector for each log-mel `(F, M)` of at most `max_frames`, batched by length.

    Args:
        forward: From log-mels `(B, 1, M, F)` on the CPU to vectors `(B, D)`.
        mels: At least one.
        encoder: Says how they are padded.
        batch_size: Of them at a time.
    """
    lengths = np.array([len(mel) for mel in mels], np.int64)
    out: Tensor | None = None
    for batch in length_batches(lengths, batch_size, min_frames=encoder.min_frames, max_frames=encoder.max_frames):
        vectors = forward(padded_batch([mels[i] for i in batch], encoder)).float().cpu()
        if len(batch) == len(mels):  # the usual case: no copy
            return vectors
        if out is None:
            out = vectors.new_empty(len(mels), vectors.shape[1])
        out[torch.from_numpy(batch)] = vectors
    assert out is not None
    return out


def clip_vectors(
    forward: Callable[[Tensor], Tensor], mels: Sequence[Frames], encoder: TakesPieces, batch_size: int
) -> Tensor:
    """The vector of each clip, `(n, D)` float32 on the CPU: what every door of decar gives for it.

    A clip longer than the encoder's `max_frames` is cut into pieces of that length, end to end; its vector is the mean
    of theirs, each weighing as much as it has frames. The last piece is as short as it comes, and padded with silence
    like a clip of its length. Arguments are those of `piece_vectors`, with log-mels of any length.
    """
    cuts = [pieces(len(mel), encoder.max_frames) for mel in mels]
    vectors = piece_vectors(
        forward, [mel[cut] for mel, cut_up in zip(mels, cuts, strict=True) for cut in cut_up], encoder, batch_size
    )
    if len(vectors) == len(mels):
        return vectors
    owner = torch.from_numpy(np.repeat(np.arange(len(mels)), [len(cut_up) for cut_up in cuts]))
    frames = torch.tensor([cut.stop - cut.start for cut_up in cuts for cut in cut_up], dtype=torch.float64)
    total = vectors.new_zeros(len(mels), vectors.shape[1], dtype=torch.float64)
    total.index_add_(0, owner, vectors.double() * frames[:, None])  # exact for a clip of one piece
    weight = total.new_zeros(len(mels)).index_add_(0, owner, frames)
    return (total / weight.clamp_min(1)[:, None]).float()

"""The pass over a whole set: every clip, whole, once, in the order of the data set."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decar.audio import LogMelStore
from decar.audio.crops import collate, length_batches, padded_frames, whole
from decar.audio.progress import progress_bar
from decar.models.encoder import Encoder, evaluating


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
    frames = padded_frames(store.lengths[batch], min_frames=encoder.min_frames, max_frames=encoder.max_frames)
    silence = encoder.frontend.silence
    return collate([whole(store[int(i)], int(f), silence) for i, f in zip(batch, frames, strict=True)])


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
    out = np.empty((len(store), encoder.dim), np.float32)
    batches = batches_by_length(store, np.arange(len(store)), encoder, batch_size)
    with evaluating(encoder), progress_bar("embed", len(store), enabled=progress) as advance:
        for batch in batches:
            advance(len(batch))
            out[batch] = encoder(whole_clips(store, batch, encoder).to(device)).float().cpu().numpy()
    encoder.to(home)
    return out

"""The common API of HEAR 2021 (Turian et al., arXiv:2203.03022): the functions its evaluation calls a model by.

`hear-validator decar.hear -m encoder.safetensors` checks it. Everything goes through `Encoder.embed`, so that a
sound's embedding is the one that every other door of decar gives.
"""

import torch
from torch import Tensor, nn

from decar.errors import AudioError
from decar.models import Encoder, load_encoder

INTERVAL = 0.05
"""s between timestamps: the most that HEAR recommends, for its tasks of sound events."""

BATCH_FRAMES = 6400
"""Frames that are embedded at once, a minute's worth: bounds the memory, whatever the number and length of sounds."""


class HearModel(nn.Module):
    """An encoder with the attributes that HEAR looks for.

    Attributes:
        sample_rate: Hz of the sounds it takes.
        scene_embedding_size: `D`.
        timestamp_embedding_size: `D` too: a timestamp's embedding is that of the stretch around it.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.sample_rate = encoder.sample_rate
        self.scene_embedding_size = encoder.dim
        self.timestamp_embedding_size = encoder.dim


def load_model(model_file_path: str = "") -> HearModel:
    """The model of a bundle, in eval mode on the CPU.

    Args:
        model_file_path: Whatever `decar.load_encoder` takes; empty for the encoder that comes with decar.

    Raises:
        BundleError: There is no such bundle, or it is damaged.
    """
    return HearModel(load_encoder(model_file_path or None)).eval()


@torch.no_grad()
def get_scene_embeddings(audio: Tensor, model: HearModel) -> Tensor:
    """One embedding a sound: `(n_sounds, n_samples)` to `(n_sounds, D)` float32, on the device of `audio`.

    A sound longer than `Encoder.max_frames` is the mean of its pieces, as everywhere in decar. A short one is padded
    with silence.

    Raises:
        AudioError: `audio` is not `(n_sounds, n_samples)`, holds no samples, or is not finite.
    """
    _check(audio)
    return _embed(audio.unsqueeze(1), model.encoder)[:, 0]


@torch.no_grad()
def get_timestamp_embeddings(audio: Tensor, model: HearModel) -> tuple[Tensor, Tensor]:
    """An embedding every 50 ms: that of the stretch around it, as long as a training crop (`Encoder.min_frames`, 1 s).

    Args:
        audio: `(n_sounds, n_samples)` at `model.sample_rate`; what lies before and after a sound counts as silence.
        model: From `load_model`.

    Returns:
        Embeddings `(n_sounds, n_timestamps, D)` float32 and their timestamps `(n_sounds, n_timestamps)` in ms, float32,
        from 0 to the end of the sound, both on the device of `audio`.

    Raises:
        AudioError: `audio` is not `(n_sounds, n_samples)`.
    """
    _check(audio)
    encoder = model.encoder
    length, step = encoder.frontend.n_samples(encoder.min_frames), max(1, int(INTERVAL * encoder.sample_rate))
    padded = nn.functional.pad(audio, (length // 2, length - length // 2))
    windows = padded.unfold(1, length, step)[:, : 1 + audio.shape[1] // step]  # a view: nothing is copied
    times = torch.arange(windows.shape[1], device=audio.device) * (1000 * step / encoder.sample_rate)
    return _embed(windows, encoder), times.float().expand(len(audio), -1).clone()


def _embed(windows: Tensor, encoder: Encoder) -> Tensor:
    """`(n_sounds, W, T)` to `(n_sounds, W, D)`, so many windows at a time as `BATCH_FRAMES` allows."""
    n_sounds, n_windows, length = windows.shape
    batch = max(1, BATCH_FRAMES // max(encoder.min_frames, encoder.frontend.n_frames(length)))
    out = torch.empty(n_sounds * n_windows, encoder.dim, device=windows.device)
    for first in range(0, len(out), batch):
        part = torch.arange(first, min(first + batch, len(out)), device=windows.device)
        piece = windows[part // n_windows, part % n_windows]
        out[part] = encoder.embed(piece).to(out)
    return out.view(n_sounds, n_windows, encoder.dim)


def _check(audio: Tensor) -> None:
    if audio.ndim != 2:
        raise AudioError(f"sounds (n_sounds, n_samples) are expected, got shape {tuple(audio.shape)}")

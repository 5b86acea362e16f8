"""Augmentation of batches: bands and stretches of the log-mel are blotted out, levels vary, for each clip otherwise."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from decar.errors import ConfigError


class SpecAugment(nn.Module):
    """Frequency and time masks after Park et al., "SpecAugment" (arXiv 1904.08779), section 2.

    "Frequency masking is applied so that f consecutive mel frequency channels [f0, f0 + f) are masked, where f is
    first chosen from a uniform distribution from 0 to the frequency mask parameter F, and f0 is chosen from [0, ν −
    f)"; time masking likewise. As in DECAR's released code: two masks of each kind (F = 30, T = 40), filled with the
    clip's mean. Its time-warp is left out, since it is broken there (it takes a log-mel value for a frame's number).

    Args:
        n_freq_masks: masks over mel bands, of each clip.
        freq_width: F, mel bands, the widest such mask.
        n_time_masks: masks over frames, of each clip.
        time_width: T, frames, the widest such mask.
        released: whether widths are drawn as in DECAR's released code, not uniformly up to F or T: the mask ends at a
            random place within one that is 0 to F - 1 wide, so that half as much is masked, and after one of width 0 no
            further mask of its kind is drawn.
    """

    def __init__(
        self,
        n_freq_masks: int = 2,
        freq_width: int = 30,
        n_time_masks: int = 2,
        time_width: int = 40,
        released: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(released, bool):
            raise ConfigError(f"SpecAugment: released={released}: give true or false")
        if min(n_freq_masks, freq_width, n_time_masks, time_width) < 0:
            raise ConfigError("SpecAugment: numbers and widths of masks must be 0 or more")
        self.n_freq_masks = n_freq_masks
        self.freq_width = freq_width
        self.n_time_masks = n_time_masks
        self.time_width = time_width
        self._mask = _released_mask if released else _mask

    def forward(self, x: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """(B, 1, M, F) → the same shape, masked, as a new tensor; in eval mode x itself.

        Args:
            x: log-mels; not changed.
            generator: where the randomness comes from, of any device; torch's own when None.
        """
        if not self.training:
            return x
        n_clips, _, n_mels, n_frames = x.shape
        bands = self._mask(n_clips, n_mels, self.n_freq_masks, self.freq_width, x.device, generator)
        times = self._mask(n_clips, n_frames, self.n_time_masks, self.time_width, x.device, generator)
        mean = x.float().mean(dim=(1, 2, 3), keepdim=True).to(x.dtype)
        return torch.where(bands[:, None, :, None] | times[:, None, None, :], mean, x)


class RandomGain(nn.Module):
    """Play each clip louder or softer: adds one number to its whole log-mel.

    Args:
        deviation: of that number, normally distributed around 0, in the log-mel's unit, the natural log of magnitude.
            One unit is 20 · log10(e) = 8.7 dB, so that 1.3 is 11.3 dB.
    """

    def __init__(self, deviation: float) -> None:
        super().__init__()
        if not 0 <= deviation < math.inf:  # false for NaN too
            raise ConfigError(f"RandomGain: deviation={deviation}: not allowed; give a finite number, 0 or more")
        self.deviation = deviation

    def forward(self, x: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """(B, 1, M, F) → the same shape as a new tensor; in eval mode x itself.

        Args:
            x: log-mels; not changed.
            generator: where the randomness comes from, of any device; torch's own when None.
        """
        if not self.training:
            return x
        source = generator.device if generator is not None else x.device
        draw = torch.randn(len(x), 1, 1, 1, generator=generator, device=source)
        return x + self.deviation * draw.to(x.device, x.dtype)


class RandomResizeCrop(nn.Module):
    """Zoom into a random part of each log-mel: other pitches and tempi of the same kind of sound.

    After Niizumi et al., "BYOL for Audio" (arXiv 2103.06695), section III-C, without its zooming out.

    Args:
        min_scale: the smallest part, as a share of the bands and, drawn apart from it, of the frames; in (0, 1].
    """

    def __init__(self, min_scale: float = 0.6) -> None:
        super().__init__()
        if not 0 < min_scale <= 1:
            raise ConfigError(f"RandomResizeCrop: min_scale={min_scale}: not allowed; give a number above 0, up to 1")
        self.min_scale = min_scale

    def forward(self, x: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """(B, 1, M, F) → the same shape as a new tensor, by bilinear interpolation; in eval mode x itself."""
        if not self.training:
            return x
        source = generator.device if generator is not None else x.device
        draws = torch.rand(2, len(x), 2, generator=generator, device=source).to(x.device, x.dtype)
        scale = 1 - (1 - self.min_scale) * draws[0]  # of frames, of bands: affine_grid has the last axis first
        middle = (1 - scale) * (2 * draws[1] - 1)
        grid = functional.affine_grid(
            torch.cat([torch.diag_embed(scale), middle[:, :, None]], dim=2), list(x.shape), align_corners=False
        )
        return functional.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _mask(
    n_clips: int, size: int, n_masks: int, width: int, device: torch.device, generator: torch.Generator | None
) -> torch.Tensor:
    """(B, size) bool, True under any of the masks of that clip."""
    source = generator.device if generator is not None else device
    draws = torch.rand(2, n_clips, n_masks, 1, generator=generator, device=source).to(device)
    widths = (draws[0] * (min(width, size) + 1)).floor()  # uniform in {0, …, W}
    begins = (draws[1] * (size - widths + 1)).floor()  # uniform in {0, …, size − w}
    return _covered(begins, widths, size)


def _released_mask(
    n_clips: int, size: int, n_masks: int, width: int, device: torch.device, generator: torch.Generator | None
) -> torch.Tensor:
    """As `_mask`, with the widths of the released code."""
    source = generator.device if generator is not None else device
    draws = torch.rand(3, n_clips, n_masks, 1, generator=generator, device=source).to(device)
    most = (draws[0] * min(width, size)).floor()  # uniform in {0, …, W − 1}
    begins = (draws[1] * (size - most)).floor()  # uniform in {0, …, size − most − 1}
    widths = (draws[2] * most).floor()  # uniform in {0, …, most − 1}
    return _covered(begins, widths * (most > 0).cumprod(dim=1), size)


def _covered(begins: torch.Tensor, widths: torch.Tensor, size: int) -> torch.Tensor:
    """(B, size) bool, True from one of the (B, n, 1) `begins` on for its width."""
    place = torch.arange(size, device=begins.device)
    return ((place >= begins) & (place < begins + widths)).any(dim=1)

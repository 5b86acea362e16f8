"""Arrays of samples that callers hand over → float32 waveforms with full scale at ±1, or an error that says why not."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import numpy.typing as npt
import soxr
import torch

from decar.errors import AudioError
from decar.limits import limits

log = logging.getLogger(__name__)

LOUDEST = 32.0  # times full scale, of floats: 30 dB above what any recording reaches, far below unscaled 16-bit numbers
CANCELLED = 1e-3  # -30 dB: channels whose mean has less of their power than this cancel one another
CANCEL_NOTE = "channels cancel: they are of opposite polarity, one of them is taken"
LOST = 1e-2  # a waveform that keeps less of its power at a lower rate is reported: a bat, not a cymbal
SILENT_POWER = 1e-8  # mean square, -80 dBFS
WIDEST_INTEGER = 4  # bytes; wider ones are a language's default for numbers, not a format of samples

Waveform = npt.NDArray[np.float32]


class Gauge:
    """Length and peak of a waveform that comes in blocks.

    Attributes:
        samples: How many there were.
        peak: The largest absolute value of them.
    """

    samples, peak = 0, 0.0

    def add(self, block: Waveform) -> Waveform:
        """Count a block, and return it."""
        self.samples += len(block)
        self.peak = max(self.peak, float(np.abs(block).max(initial=0.0)))
        return block


class Power:
    """Mean power of a waveform that comes in blocks, without a constant offset."""

    _samples, _sum, _squares = 0, 0.0, 0.0

    def add(self, block: Waveform) -> Waveform:
        """Count a block, and return it."""
        with np.errstate(over="ignore"):
            self._samples += len(block)
            self._sum += float(block.sum())
            self._squares += float(np.dot(block, block))
        return block

    @property
    def mean(self) -> float:
        """Mean square of the samples less their mean."""
        n = max(self._samples, 1)
        return max(0.0, self._squares / n - (self._sum / n) ** 2)


def too_high(before: Power, after: Power, rate: int) -> str:
    """The note of a waveform of whose power next to nothing is left at a lower rate (Hz); "" for another."""
    if before.mean <= max(SILENT_POWER, after.mean / LOST):
        return ""
    return f"too high: {1 - after.mean / before.mean:.1%} of its power is above {rate // 2} Hz, which is left out"


def warn_if_lost(i: int, before: Waveform, after: Waveform, rate: int) -> None:
    """Log that next to nothing of waveform `i`, `(T,)`, is left at a lower rate (Hz)."""
    powers = Power(), Power()
    for power, waveform in zip(powers, (before, after), strict=True):
        power.add(waveform)
    if lost := too_high(*powers, rate):
        log.warning("waveform %d: %s", i, lost)


def as_array(samples: torch.Tensor | npt.ArrayLike) -> npt.NDArray[Any]:
    """The same samples in NumPy, from any device; it has no bfloat16, so those become float32."""
    if not isinstance(samples, torch.Tensor):
        return np.asarray(samples)
    given = samples.detach().cpu()
    array: npt.NDArray[Any] = (given.float() if given.dtype == torch.bfloat16 else given).numpy()
    return array


def scaled(samples: npt.NDArray[Any]) -> Waveform:
    """Samples of any shape as float32, full scale at ±1.

    Signed integers are divided by 2^(bits - 1); unsigned ones have their zero in the middle of the range, as in WAV.

    Raises:
        AudioError: No samples, NaN or infinity, a type without a known scale, or floats beyond `LOUDEST`.

    >>> scaled(np.array([-32768, 16384], np.int16)).tolist(), scaled(np.array([0, 128], np.uint8)).tolist()
    ([-1.0, 0.5], [-1.0, 0.0])
    """
    if samples.dtype.kind in "iu" and samples.dtype.itemsize <= WIDEST_INTEGER:
        half = 2.0 ** (8 * samples.dtype.itemsize - 1)
        middle = half if samples.dtype.kind == "u" else 0.0
        return ((samples.astype(np.float64) - middle) / half).astype(np.float32)
    if samples.dtype.kind != "f":
        raise AudioError(
            f"samples of type {samples.dtype} have no known full scale: give floats within ±1, or int16, int32, uint8"
        )
    with np.errstate(over="ignore"):
        waveform = np.asarray(samples, np.float32)
    if not np.isfinite(waveform).all():
        raise AudioError("samples that are not finite (NaN or infinity): finite ones are expected")
    peak = float(np.abs(waveform).max(initial=0.0))
    if peak > LOUDEST:
        raise AudioError(
            f"floats with a peak of {peak:.4g}, full scale is ±1: divide by 32768 if these are 16-bit numbers"
        )
    return waveform


def resampled(waveform: Waveform, rate: int | None, wanted: int) -> Waveform:
    """`(T,)` or `(T, C)` at another rate (Hz); None: it has the wanted one."""
    if rate is None or rate == wanted:
        return waveform
    if not rate > 0:
        raise AudioError(f"sample_rate={rate}: give the rate of the samples in Hz, such as 44100")
    limits().check_rate(rate)
    made: Waveform = soxr.resample(waveform, rate, wanted)
    return made


def mixed(channels: Waveform, rate: int) -> tuple[Waveform, bool]:
    """`(T, C)` at `rate` Hz → the mean `(T,)` of its channels, and whether they cancel anywhere.

    In each second in which they do (their mean has less than a thousandth of their power), the first one that is not
    silent is taken.
    """
    mean: Waveform = channels.mean(axis=1)
    cancelled = False
    for at in range(0, len(channels), rate):
        second, mono = channels[at : at + rate], mean[at : at + rate]
        power = np.array([float(np.dot(channel, channel)) for channel in second.T])
        if float(np.dot(mono, mono)) < CANCELLED * power.mean():
            mono[:] = second[:, np.argmax(power >= power.mean() / 10)]
            cancelled = True
    return mean, cancelled


def mono_batch(samples: npt.NDArray[Any], rate: int | None, wanted: int) -> Waveform:
    """`(T,)` or `(B, T)` samples of any type and rate as C-contiguous `(B, T)` float32 at `wanted` Hz.

    Raises:
        AudioError: As `scaled` and `resampled`, or another shape.
    """
    if samples.ndim not in (1, 2):
        raise AudioError(f"waveforms of shape (T,) or (B, T) are expected, got {samples.shape}")
    batch = samples[None] if samples.ndim == 1 else samples
    if batch.shape[1] == 0:
        raise AudioError(f"waveforms of shape {samples.shape} hold no samples")
    if batch.shape[1] <= 8 < batch.shape[0]:
        raise AudioError(
            f"waveforms of shape {samples.shape}: (B, T) is expected, and this looks like (T, channels); average the "
            "channels first"
        )
    waveform = scaled(batch)
    if len(waveform) and rate not in (None, wanted):
        whole, waveform = waveform, resampled(waveform.T, rate, wanted).T
        for i, (before, after) in enumerate(zip(whole, waveform, strict=True)):
            warn_if_lost(i, before, after, wanted)
    return np.ascontiguousarray(waveform)

"""LogMel: waveform (B, T) → log-mel (B, M, F), and the numbers that it is made of.

The paper gives a 25 ms window, a 10 ms hop and 64 mel bands from 60 to 7800 Hz. What it leaves open is as in its
released code: 16 kHz, an FFT of 1024, magnitudes, the HTK mel scale without area normalisation, no centring, a clip
at 1e-5, the natural logarithm.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torchaudio
from torch import nn

from decar.audio.crops import packed
from decar.errors import AudioError, ConfigError

LEAST_NORM = 1e-12  # of a waveform; a smaller one counts as silence
BLOCK_FRAMES = 1000  # 10 s at 10 ms: the spectrum (4 MB) stays near the cache; measured in threads, 6000 are 7 % slower


@dataclass(frozen=True)
class FrontEnd:
    """The numbers of the front-end; a trained encoder works with its own only, so they travel in its bundle.

    Attributes:
        sample_rate: Hz.
        n_fft: samples; the window is padded with zeros to this length.
        win_length: samples of the (periodic Hann) window; 400 = 25 ms.
        hop_length: samples from frame to frame; 160 = 10 ms.
        n_mels: M, mel bands.
        f_min: Hz, lower edge of the lowest band.
        f_max: Hz, upper edge of the highest band.
        floor: magnitudes below this count as this.
        l2: whether each clip is divided by its L2 norm before; a variant of the released code, the paper has no word of
            it. All of a clip is in memory then.
    """

    sample_rate: int = 16_000
    n_fft: int = 1024
    win_length: int = 400
    hop_length: int = 160
    n_mels: int = 64
    f_min: float = 60.0
    f_max: float = 7800.0
    floor: float = 1e-5
    l2: bool = False
    multiple: ClassVar[int] = 32  # of frames, to which clips are padded when they are embedded

    def __post_init__(self) -> None:
        if not isinstance(self.l2, bool):
            raise ConfigError(f"front-end: l2={self.l2}: give true or false")
        if min(self.sample_rate, self.win_length, self.hop_length, self.n_mels) < 1 or not self.floor > 0:
            raise ConfigError(f"the front-end needs positive numbers, got {self.as_dict()}")
        if self.win_length > self.n_fft:
            raise ConfigError(f"front-end: win_length {self.win_length} is longer than n_fft {self.n_fft}: raise n_fft")
        if not 0 <= self.f_min < self.f_max <= self.sample_rate / 2:
            raise ConfigError(
                f"front-end: 0 ≤ f_min < f_max ≤ {self.sample_rate / 2:g} Hz (half of sample_rate) is needed, "
                f"got f_min {self.f_min:g} and f_max {self.f_max:g}"
            )

    @property
    def silence(self) -> float:
        """The log-mel of silence, ln(floor): what padding is made of, never 0.0, which is a loud sound."""
        return math.log(self.floor)

    def n_frames(self, n_samples: int) -> int:
        """F for T samples: 1 + (T − win_length) // hop_length, and 0 when T is shorter than one window."""
        return 0 if n_samples < self.win_length else 1 + (n_samples - self.win_length) // self.hop_length

    def n_samples(self, n_frames: int) -> int:
        """T, the fewest samples of which F frames are made."""
        return (n_frames - 1) * self.hop_length + self.win_length

    def as_dict(self) -> dict[str, int | float]:
        """Plain numbers, for JSON: `FrontEnd(**numbers)` gives the same front-end again.

        `l2` is left out where it is false, as before there was such an option: hashes stay.
        """
        return {name: value for name, value in asdict(self).items() if name != "l2" or value}

    def levelled(self, blocks: Iterable[npt.NDArray[np.float32]]) -> Iterator[npt.NDArray[np.float32]]:
        """The waveform of a clip as the log-mel takes it, block by block; with `l2` its norm is 1, or 0 of silence."""
        return _unit_norm(blocks) if self.l2 else iter(blocks)

    def hash(self) -> str:
        """SHA-256 (hex) of the numbers."""
        numbers = {name: float(value) for name, value in self.as_dict().items()}  # 60 and 60.0 are one number
        return hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest()

    def transform(self) -> Transform:
        """The module from waveforms `(B, T)` to frames `(B, M, F)`."""
        return LogMel(self)


def _unit_norm(blocks: Iterable[npt.NDArray[np.float32]]) -> Iterator[npt.NDArray[np.float32]]:
    held = [*blocks]
    norm = math.sqrt(sum(float(np.square(block, dtype=np.float64).sum()) for block in held))
    yield from (block / np.float32(max(norm, LEAST_NORM)) for block in held)


class Samples(FrontEnd):
    """No features: frames of 10 ms of the waveform itself, for networks that take waveforms.

    Stores keep float16. So each of the W samples of a frame is two numbers: its float16 value, and what that lacks.
    Their sum has 22 bits: 16-bit PCM at the encoder's own rate comes back exactly. M = 2 W; silence is 0.
    """

    multiple = 1  # such networks are not used to silence at the end

    @classmethod
    def of(cls, sample_rate: int) -> Samples:
        """The front-end for a rate in Hz."""
        width = max(1, sample_rate // 100)
        return cls(sample_rate, width, width, width, 2 * width, f_min=0.0, f_max=sample_rate / 2, floor=1.0)

    def hash(self) -> str:
        """SHA-256 (hex) of the numbers, and of what they are for."""
        return hashlib.sha256(f"samples {super().hash()}".encode()).hexdigest()

    def transform(self) -> FramedSamples:
        """See `FrontEnd.transform`."""
        return FramedSamples(self)

    @staticmethod
    def waveform(frames: torch.Tensor) -> torch.Tensor:
        """Frames `(B, 2 W, F)` → the waveforms `(B, F * W)` that they were made of."""
        value, rest = frames.chunk(2, dim=1)
        return (value + rest).transpose(1, 2).flatten(1)


class FramedSamples(nn.Module):
    """(B, T) float32 → (B, 2 W, F), the frames of `Samples`; up to W - 1 samples at the end fill no frame."""

    def __init__(self, spec: Samples) -> None:
        super().__init__()
        self.spec: FrontEnd = spec

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """Frames of waveforms.

        Raises:
            AudioError: As of `LogMel.forward`.
        """
        _check_waveforms(waveform, self.spec)
        samples = waveform.float().unfold(1, self.spec.hop_length, self.spec.hop_length).transpose(1, 2)
        value = samples.half().float()
        return torch.cat([value, samples - value], dim=1)


class LogMel(nn.Module):
    """(B, T) float32 → (B, M, F) float32, F = 1 + (T − 400) // 160: 1 s gives 98 frames, 10 s give 998.

    Frame n is made of samples [160 n, 160 n + 400) alone. It has no weights, and an empty `state_dict`.
    """

    def __init__(self, spec: FrontEnd | None = None) -> None:
        super().__init__()
        self.spec = spec or FrontEnd()
        # torch puts the window into the middle of the FFT frame; this much on either side makes it begin at sample 0
        left = (self.spec.n_fft - self.spec.win_length) // 2
        self._pad = (left, self.spec.n_fft - self.spec.win_length - left)
        self.spectrogram = torchaudio.transforms.Spectrogram(
            self.spec.n_fft, self.spec.win_length, self.spec.hop_length, power=1.0, center=False
        )
        self.mel_scale = torchaudio.transforms.MelScale(
            self.spec.n_mels, self.spec.sample_rate, self.spec.f_min, self.spec.f_max, self.spec.n_fft // 2 + 1
        )
        # constants, not state: a bundle holds the numbers they are made from
        self.spectrogram.register_buffer("window", self.spectrogram.window, persistent=False)
        self.mel_scale.register_buffer("fb", self.mel_scale.fb, persistent=False)

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """(B, T) waveform at `spec.sample_rate` → (B, M, F) natural log of mel magnitudes, always in float32.

        Raises:
            AudioError: T is shorter than one window, or the waveform is not (B, T).
        """
        _check_waveforms(waveform, self.spec)
        with torch.autocast(waveform.device.type, enabled=False):  # half precision loses quiet bands
            padded = nn.functional.pad(waveform.float(), self._pad)
            mel: torch.Tensor = self.mel_scale(self.spectrogram(padded))
            return mel.clamp_min(self.spec.floor).log()


Transform: TypeAlias = LogMel | FramedSamples


def _check_waveforms(waveform: torch.Tensor, spec: FrontEnd) -> None:
    if waveform.ndim != 2:
        raise AudioError(f"a batch of waveforms (B, T) is expected, got shape {tuple(waveform.shape)}")
    if waveform.shape[1] < spec.win_length:
        raise AudioError(too_short(waveform.shape[1], spec))


def too_short(n_samples: int, spec: FrontEnd) -> str:
    """Why a waveform that does not fill one window cannot be used."""
    return f"too short: {n_samples / spec.sample_rate:.3f} s, one window is {spec.win_length / spec.sample_rate:.3f} s"


def waveform_to_frames(log_mel: Transform, waveform: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """One waveform (T,) of any length → (F, M) float16, frames first as the store keeps them; 10 s at a time.

    Raises:
        AudioError: As `waveforms_to_frames`.
    """
    return waveforms_to_frames(log_mel, [waveform])[0]


def waveforms_to_frames(
    log_mel: Transform, waveforms: Sequence[npt.NDArray[np.float32]]
) -> list[npt.NDArray[np.float16]]:
    """The same for several waveforms. Short ones share a spectrogram: fewer operations, and equal to the bit.

    Each begins at a whole hop. A frame depends on its own samples alone; frames across two waveforms are dropped.

    Raises:
        AudioError: One is shorter than one window, or its samples are so large that the spectrum overflows: full scale
            is 1, these are near 1e38.
    """
    spec = log_mel.spec
    for waveform in waveforms:
        if spec.n_frames(len(waveform)) == 0:
            raise AudioError(too_short(len(waveform), spec))
    rows = packed(waveforms, lambda waveform: hops(waveform, spec), BLOCK_FRAMES)
    made = [frames for row in rows for frames in _row_to_frames(log_mel, row)]
    if not all(np.isfinite(frames).all() for frames in made):
        raise AudioError("samples too large for a spectrum")
    return made


def cut(
    blocks: Iterator[npt.NDArray[np.float32]], size: int, hop: int, least: int
) -> Iterator[npt.NDArray[np.float32]]:
    """Windows of `size` samples, one every `hop`; the last may be shorter. In memory are one window and one block.

    Every sample is in a window (where `hop` ≤ `size`), but for an end that would bring fewer than `least` new ones in a
    window that is not full. A first window is given however short it is.

    >>> [w.tolist() for w in cut(iter([np.arange(3), np.arange(3, 7)]), 4, 2, 1)]
    [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6]]
    """
    held, skip, first, end = np.zeros(0, np.float32), 0, True, False
    while not end:
        block = next(blocks, None)
        end = block is None
        if block is not None:
            held = np.concatenate([held, block]) if len(held) else block
        if skip:  # of the gap between windows
            gone = min(skip, len(held))
            held, skip = held[gone:], skip - gone
        while len(held) >= size or (end and not skip and (first or len(held) >= max(0, size - hop) + least)):
            yield held[:size]
            first, full = False, len(held) >= size
            skip = max(0, hop - len(held))
            held = held[hop:]
            if not full:
                return


def hops(waveform: npt.NDArray[np.float32], spec: FrontEnd) -> int:
    """Hops from the beginning of a waveform to the next one in the same spectrogram."""
    return -(-len(waveform) // spec.hop_length)


def _row_to_frames(log_mel: Transform, row: list[npt.NDArray[np.float32]]) -> list[npt.NDArray[np.float16]]:
    """The frames of each waveform, from one spectrogram in which each begins at a whole hop."""
    spec = log_mel.spec
    if len(row) == 1:
        return [_to_frames(log_mel, row[0])]  # an hour is not copied
    lengths = [hops(waveform, spec) for waveform in row]
    begins = np.cumsum(lengths) - lengths
    samples = np.zeros(sum(lengths) * spec.hop_length, np.float32)
    for begin, waveform in zip(begins * spec.hop_length, row, strict=True):
        samples[begin : begin + len(waveform)] = waveform
    frames = _to_frames(log_mel, samples)
    return [frames[begin : begin + spec.n_frames(len(waveform))] for begin, waveform in zip(begins, row, strict=True)]


@torch.no_grad()
def _to_frames(log_mel: Transform, waveform: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """(T,) → (F, M), block by block."""
    spec = log_mel.spec
    n_frames = spec.n_frames(len(waveform))
    frames = np.empty((n_frames, spec.n_mels), np.float16)
    for first in range(0, n_frames, BLOCK_FRAMES):
        last = min(first + BLOCK_FRAMES, n_frames)
        samples = waveform[first * spec.hop_length : spec.n_samples(last)]
        frames[first:last] = log_mel(torch.from_numpy(samples)[None])[0].T.numpy()
    return frames

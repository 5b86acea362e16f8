"""The road from files to log-mel pieces, for stores and for `decar embed`.

Threads decode clips and compute log-mels; results come in the order of the clips. A long recording is read in pieces of
some 10 s, so its length does not matter to the memory. Short clips share a spectrogram: torch takes Python's lock after
each of its operations, and two threads with a second of sound an operation would spend half of the time waiting.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from decar.audio.crops import packed
from decar.audio.decode import decode_blocks
from decar.audio.logmel import BLOCK_FRAMES, FrontEnd, Transform, cut, hops, too_short, waveforms_to_frames
from decar.audio.parallel import in_order
from decar.audio.samples import Gauge, Waveform
from decar.errors import AudioError, ConfigError, check_positive

log = logging.getLogger(__name__)

SILENCE_PEAK = 1e-4  # -80 dBFS

GROUP_CLIPS = 8  # clips of a job of a thread; 16 are no faster
GROUP_BYTES = 2**18  # files of a job: 8 s of wav at 16 kHz, a minute of Opus
BYTES_PER_SECOND = 32_000  # estimate for a stretch of a file

Job = tuple[Path, float, float | None]
"""File, start (s) and duration (s; None: to the end) of a clip."""

Frames = npt.NDArray[np.float16]


@dataclass(frozen=True)
class Piece:
    """(F, M) float16 log-mel of a piece of a clip."""

    mel: Frames


@dataclass(frozen=True)
class RowEnd:
    """The pieces since the previous `RowEnd` are one row: a window, or the clip."""


@dataclass(frozen=True)
class ClipEnd:
    """The end of a clip.

    Attributes:
        n_samples: Length at the rate of the front-end.
        reason: Why the clip cannot be used, "" if it can. Pieces that came before do not count then.
        silent: Whether no sample is above `SILENCE_PEAK`.
    """

    n_samples: int
    reason: str = ""
    silent: bool = False


Event = Piece | RowEnd | ClipEnd
_Sound = Waveform | RowEnd | ClipEnd


class Windows:
    """How clips are cut: into one row each, or one every `hop` seconds; and each row into pieces.

    Args:
        seconds: Length of a window; None: a clip is one row.
        hop: Seconds from window to window; `seconds` when None.
        frontend: The numbers of the log-mel.
        max_frames: Frames of a piece. A longer row has several, end to end; the last one is as short as it comes.

    Raises:
        ConfigError: A number is not positive, a window is shorter than a frame, or there is a hop without windows.
    """

    def __init__(self, seconds: float | None, hop: float | None, frontend: FrontEnd, max_frames: int) -> None:
        if hop is not None and seconds is None:
            raise ConfigError(f"--hop {hop:g} without --windows: say how long a window is")
        for key, value in (("--windows", seconds), ("--hop", hop)):
            if value is not None:
                check_positive(key, value)
        self.frontend, rate = frontend, frontend.sample_rate
        self.size = None if seconds is None else round(seconds * rate)
        self.hop = self.size if hop is None else round(hop * rate)
        if self.size is not None and self.size < frontend.win_length:
            raise ConfigError(f"--windows {seconds:g}: shorter than one frame, {frontend.win_length / rate:g} s")
        if self.hop is not None and self.hop < 1:
            raise ConfigError(f"--hop {hop:g}: less than a sample")
        self.max_frames = max_frames

    def rows(self, blocks: Iterator[Waveform]) -> Iterator[Iterator[Waveform]]:
        """The rows of a clip, each as the waveforms of its pieces; exhaust a row before taking the next."""
        if self.size is None or self.hop is None:
            yield self._pieces(blocks)
            return
        for window in cut(blocks, self.size, self.hop, self.frontend.win_length):
            yield self._pieces(iter([window]))

    def _pieces(self, blocks: Iterator[Waveform]) -> Iterator[Waveform]:
        step, window = self.frontend.hop_length, self.frontend.win_length
        size = (self.max_frames - 1) * step + window
        return cut(blocks, size, self.max_frames * step, min(step, window))  # so many new samples are a new frame

    def places(self, n_rows: int, n_samples: int) -> npt.NDArray[np.float64]:
        """`(R, 2)`: start and duration (s) of each window in its clip."""
        assert self.size is not None
        assert self.hop is not None
        starts = np.arange(n_rows) * self.hop
        lengths = np.minimum(self.size, n_samples - starts)
        return np.stack([starts, lengths], axis=1) / self.frontend.sample_rate

    def as_dict(self) -> dict[str, int | None]:
        """Samples of a window and of a hop, for a header."""
        return {"window": self.size, "hop": self.hop if self.size is not None else None}


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Otherwise each thread that computes log-mels starts torch's own threads, one a core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def read_clips(jobs: Iterable[Job], windows: Windows, num_workers: int) -> Iterator[Event]:
    """Pieces, ends of rows and ends of clips, in the order of `jobs`.

    What is wrong with a clip stands in its `ClipEnd`: one odd file in a million must not end a night's work.

    Args:
        jobs: Clips.
        windows: How they are cut.
        num_workers: Threads.
    """
    log_mel = windows.frontend.transform()

    def size(events: list[Event]) -> int:
        return sum(event.mel.nbytes for event in events if isinstance(event, Piece))

    batches = in_order(lambda group: _log_mels(group, windows, log_mel), groups(jobs), num_workers, size=size)
    return chain.from_iterable(batches)


def groups(jobs: Iterable[Job]) -> Iterator[list[Job]]:
    """Consecutive clips that one thread reads: a few short ones, or a long one."""
    return packed(jobs, _weight, GROUP_BYTES, most=GROUP_CLIPS)


def _weight(job: Job) -> int:
    """Bytes to read for a clip, roughly."""
    file, _, duration = job
    if duration is not None:
        return round(duration * BYTES_PER_SECOND)
    try:
        return os.stat(file).st_size
    except (OSError, ValueError):  # `decode_blocks` reports the error
        return 0


def _log_mels(group: Sequence[Job], windows: Windows, log_mel: Transform) -> Iterator[list[Event]]:
    """All events of a few clips, in lists of up to 10 s of sound."""

    def weight(event: _Sound) -> int:
        return hops(event, log_mel.spec) if isinstance(event, np.ndarray) else 0

    sound = chain.from_iterable(map(_read, group, repeat(windows)))
    return map(_Transform(log_mel), packed(sound, weight, BLOCK_FRAMES))


class _Transform:
    """Puts log-mels in the place of waveforms, and what went wrong into the end of the clip."""

    def __init__(self, log_mel: Transform) -> None:
        self.log_mel = log_mel
        self.fault = ""  # of the clip that has not ended

    def __call__(self, batch: list[_Sound]) -> list[Event]:
        mels = iter(_frames_or_fault([event for event in batch if isinstance(event, np.ndarray)], self.log_mel))
        events: list[Event] = []
        for event in batch:
            if isinstance(event, np.ndarray):
                mel = next(mels)
                if isinstance(mel, str):
                    self.fault = self.fault or mel
                else:
                    events.append(Piece(mel))
            elif isinstance(event, ClipEnd) and self.fault:
                events.append(replace(event, reason=event.reason or self.fault, silent=False))
                self.fault = ""
            else:
                events.append(event)
        return events


def _read(job: Job, windows: Windows) -> Iterator[_Sound]:
    """The waveforms of a clip's pieces, ends of rows, and the end of the clip. Does not raise."""
    (file, start, duration), spec, gauge, reason = job, windows.frontend, Gauge(), ""
    try:
        blocks = decode_blocks(file, start=start, duration=duration, sample_rate=spec.sample_rate)
        for row in windows.rows(map(gauge.add, blocks)):
            for waveform in row:
                if len(waveform) < spec.win_length:
                    raise AudioError(too_short(len(waveform), spec))
                yield waveform
            yield RowEnd()
    except AudioError as error:
        reason = str(error)
    except Exception as error:
        reason = _unforeseen(error, str(file))
    yield ClipEnd(gauge.samples, reason, silent=not reason and gauge.peak <= SILENCE_PEAK)


def _frames_or_fault(waveforms: list[Waveform], log_mel: Transform) -> list[Frames | str]:
    """The log-mel of each waveform, or why there is none."""
    try:
        return [*waveforms_to_frames(log_mel, waveforms)]
    except Exception as error:
        if len(waveforms) > 1:  # find the one at fault
            return [_frames_or_fault([waveform], log_mel)[0] for waveform in waveforms]
        return [str(error) if isinstance(error, AudioError) else _unforeseen(error, "log-mel")]


def _unforeseen(error: Exception, where: str) -> str:
    log.debug("%s", where, exc_info=True)
    return f"cannot be processed ({type(error).__name__}: {' '.join(str(error).split())})"

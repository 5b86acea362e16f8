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
from typing import Literal, cast

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

SEGMENT_SECONDS = 5.0
WHOLE_SECONDS = 15.0  # a clip of up to so many is not cut into segments

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


Segment = float | Literal["auto", "none"]


def as_segment(value: object, key: str = "--segment") -> Segment:
    """What an option says of segments; None is `none`.

    Raises:
        ConfigError: It is no positive number of seconds, `auto` or `none`; `key` names the option.
    """
    if value is None or value in ("auto", "none"):
        return cast("Segment", value or "none")
    try:
        seconds = float(cast("str", value)) if not isinstance(value, bool) else None
    except (TypeError, ValueError):
        seconds = None
    if seconds is None:
        raise ConfigError(f"{key} {value}: give a number of seconds, auto or none")
    check_positive(key, seconds)
    return seconds


class Windows:
    """How clips are cut: into one row each, one every `hop` seconds, or segments; and each row into pieces.

    Segments follow one another without a gap. What is left at the end of a recording is a segment of its own, or joined
    to the one before where it is shorter than half a segment.

    Args:
        seconds: Length of a window; None: no windows.
        hop: Seconds from window to window; `seconds` when None.
        frontend: The numbers of the log-mel.
        max_frames: Frames of a piece. A longer row has several, end to end; the last one is as short as it comes.
        segment: Seconds; `auto`: 5 s, and clips of up to 15 s stay whole; `none`: a clip is one row, which says where
            it lies; None: a clip without windows is one row.

    Raises:
        ConfigError: A number is not positive, a row is shorter than a frame, there is a hop without windows, or windows
            with segments.
    """

    def __init__(
        self,
        seconds: float | None,
        hop: float | None,
        frontend: FrontEnd,
        max_frames: int,
        *,
        segment: Segment | None = None,
    ) -> None:
        if hop is not None and seconds is None:
            raise ConfigError(f"--hop {hop:g} without --windows: say how long a window is")
        if seconds is not None and segment is not None:
            raise ConfigError(f"--windows {seconds:g} and --segment {segment}: give one of the two")
        length, whole = None, None
        if segment == "auto":
            length, whole = SEGMENT_SECONDS, WHOLE_SECONDS
        elif segment is not None and segment != "none":
            length, whole = segment, 0.0
        for key, value in (("--windows", seconds), ("--hop", hop), ("--segment", length)):
            if value is not None:
                check_positive(key, value)
        self.frontend, rate = frontend, frontend.sample_rate
        key, row = ("--windows", seconds) if segment is None else ("--segment", length)
        self.size = None if row is None else round(row * rate)
        self.hop = self.size if hop is None else round(hop * rate)
        self.whole = None if whole is None else round(whole * rate)
        self.placed = seconds is not None or segment is not None  # rows say where they lie
        least = frontend.win_length if segment is None else 2 * frontend.win_length  # half a segment may be the last
        if self.size is not None and self.size < least:
            raise ConfigError(f"{key} {row:g}: too short, give at least {least / rate:g} s")
        if self.hop is not None and self.hop < 1:
            raise ConfigError(f"--hop {hop:g}: less than a sample")
        self.max_frames = max_frames

    def rows(self, blocks: Iterator[Waveform]) -> Iterator[Iterator[Waveform]]:
        """The rows of a clip, each as the waveforms of its pieces; exhaust a row before taking the next."""
        blocks = self.frontend.levelled(blocks)
        if self.size is None or self.hop is None:
            yield self._pieces(blocks)
            return
        rows = (
            cut(blocks, self.size, self.hop, self.frontend.win_length)
            if self.whole is None
            else _segments(blocks, self.size, self.whole)
        )
        for row in rows:
            yield self._pieces(iter([row]))

    def _pieces(self, blocks: Iterator[Waveform]) -> Iterator[Waveform]:
        step, window = self.frontend.hop_length, self.frontend.win_length
        size = (self.max_frames - 1) * step + window
        return cut(blocks, size, self.max_frames * step, min(step, window))  # so many new samples are a new frame

    def places(self, n_rows: int, n_samples: int) -> npt.NDArray[np.float64]:
        """`(R, 2)`: start and duration (s) of each row in its clip."""
        starts = np.arange(n_rows) * (self.hop or 0)
        lengths = n_samples - starts
        if self.size is not None:
            last = n_rows - 1 if self.whole is not None else n_rows  # a segment may have been joined by the rest
            lengths[:last] = np.minimum(self.size, lengths[:last])
        return np.stack([starts, lengths], axis=1) / self.frontend.sample_rate

    def as_dict(self) -> dict[str, int | None]:
        """Samples of a window, of a hop, and of what stays whole where there are segments, for a header."""
        return {"window": self.size, "hop": self.hop if self.size is not None else None, "whole": self.whole}


def _segments(blocks: Iterator[Waveform], size: int, whole: int) -> Iterator[Waveform]:
    """Segments of `size` samples, the last of up to half as many more or less; a clip of up to `whole` is one."""
    rest, long = np.empty(0, np.float32), False
    for block in blocks:
        rest = np.concatenate([rest, block])
        long = long or len(rest) > whole
        while long and 2 * len(rest) >= 3 * size:  # what is left makes a segment, whatever still comes
            yield rest[:size]
            rest = rest[size:]
    yield rest


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
    return packed(jobs, weight, GROUP_BYTES, most=GROUP_CLIPS)


def weight(job: Job) -> int:
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

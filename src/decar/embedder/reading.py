"""Clips → log-mels of their pieces, in order, decoded by threads a bounded stretch at a time."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from decar.audio import LogMel
from decar.audio.build import SILENCE_PEAK, Job, in_order
from decar.audio.decode import decode_blocks
from decar.audio.logmel import too_short
from decar.embedder.windows import Waveform, Windows
from decar.errors import AudioError

log = logging.getLogger(__name__)

READ_AHEAD = 8  # pieces of a clip that lie ready at once, 10 s each


@dataclass(frozen=True)
class Piece:
    """(F, M) float16 log-mel, as a store holds it; at most as long as the encoder takes."""

    mel: NDArray[np.float16]


@dataclass(frozen=True)
class RowEnd:
    """The pieces since the last row's end make one embedding."""


@dataclass(frozen=True)
class ClipEnd:
    """The clip is over: its length at the encoder's rate, and why it cannot be used, "" if it can."""

    n_samples: int
    reason: str = ""
    silent: bool = False


Event: TypeAlias = Piece | RowEnd | ClipEnd


def events(jobs: Sequence[Job], windows: Windows, log_mel: LogMel, num_workers: int) -> Iterator[Event]:
    """Pieces, ends of rows and ends of clips, in the order of the jobs.

    The threads read the beginnings of many clips at a time; the rest of a long one is read a stretch ahead.
    """

    def begin(job: Job) -> tuple[list[Event], Iterator[Event]]:
        stream = clip_events(job, windows, log_mel)
        return list(islice(stream, READ_AHEAD)), stream

    with ThreadPoolExecutor(1, thread_name_prefix="rest") as pool:
        for chunk, stream in in_order(begin, jobs, num_workers):
            while chunk:
                over = isinstance(chunk[-1], ClipEnd)
                rest = None if over else pool.submit(lambda s: list(islice(s, READ_AHEAD)), stream)
                yield from chunk
                chunk = rest.result() if rest else []


def clip_events(job: Job, windows: Windows, log_mel: LogMel) -> Iterator[Event]:
    """All of one clip; never raises: what is wrong stands in the `ClipEnd`."""
    file, start, duration = job
    count = _Count()
    try:
        blocks = decode_blocks(file, start=start, duration=duration, sample_rate=log_mel.spec.sample_rate)
        for row in windows.rows(count.watch(blocks)):
            for waveform in row:
                yield Piece(_log_mel(log_mel, waveform))
            yield RowEnd()
    except AudioError as error:
        yield ClipEnd(count.samples, str(error))
    except Exception as error:  # one odd file in a million must not end a night's work
        log.debug("%s", file, exc_info=True)
        yield ClipEnd(count.samples, f"cannot be processed ({type(error).__name__}: {' '.join(str(error).split())})")
    else:
        none = too_short(0, log_mel.spec) if not count.samples else ""
        yield ClipEnd(count.samples, none, silent=count.peak <= SILENCE_PEAK)


class _Count:
    """How much sound has gone by, and how loud it was."""

    samples, peak = 0, 0.0

    def watch(self, blocks: Iterator[Waveform]) -> Iterator[Waveform]:
        for block in blocks:
            self.samples += len(block)
            self.peak = max(self.peak, float(np.abs(block).max(initial=0.0)))
            yield block


@torch.no_grad()
def _log_mel(log_mel: LogMel, waveform: Waveform) -> NDArray[np.float16]:
    if len(waveform) < log_mel.spec.win_length:
        raise AudioError(too_short(len(waveform), log_mel.spec))
    mel = log_mel(torch.from_numpy(np.ascontiguousarray(waveform))[None])[0].T
    if not torch.isfinite(mel).all():
        raise AudioError("samples too large for a spectrum")
    return np.asarray(mel.numpy(), np.float16)

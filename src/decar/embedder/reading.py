"""Clips → log-mels of their pieces, in order, decoded by threads; a bounded number of bytes waits."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from decar.audio import LogMel
from decar.audio.build import SILENCE_PEAK, Job
from decar.audio.decode import decode_blocks
from decar.audio.logmel import too_short
from decar.audio.parallel import in_order
from decar.audio.samples import Gauge
from decar.embedder.windows import Waveform, Windows
from decar.errors import AudioError

log = logging.getLogger(__name__)


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
    """Pieces, ends of rows and ends of clips, in the order of the jobs."""

    def size(event: Event) -> int:
        return event.mel.nbytes if isinstance(event, Piece) else 0

    return in_order(lambda job: clip_events(job, windows, log_mel), jobs, num_workers, size=size)


def clip_events(job: Job, windows: Windows, log_mel: LogMel) -> Iterator[Event]:
    """All of one clip; never raises: what is wrong stands in the `ClipEnd`."""
    file, start, duration = job
    count = Gauge()
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


@torch.no_grad()
def _log_mel(log_mel: LogMel, waveform: Waveform) -> NDArray[np.float16]:
    if len(waveform) < log_mel.spec.win_length:
        raise AudioError(too_short(len(waveform), log_mel.spec))
    mel = log_mel(torch.from_numpy(np.ascontiguousarray(waveform))[None])[0].T
    if not torch.isfinite(mel).all():
        raise AudioError("samples too large for a spectrum")
    return np.asarray(mel.numpy(), np.float16)

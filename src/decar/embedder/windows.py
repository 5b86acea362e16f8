"""Where a recording is cut: sound block by block in, windows out, no more in memory than one window and a block."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from decar.audio import FrontEnd
from decar.audio.logmel import cut
from decar.errors import ConfigError, check_positive

Waveform = NDArray[np.float32]


class Windows:
    """Rows to embed: one a clip, or one every `hop` seconds; each is embedded in pieces that the encoder takes whole.

    Args:
        seconds: Length of a window; None: all of a clip is one row.
        hop: Seconds from window to window; `seconds` when None.
        frontend: Says how long a frame is.
        max_frames: The encoder's: what is longer is embedded as the mean of pieces of that many frames, each weighing
            as much as it has frames.

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
        self.piece = (max_frames - 1) * frontend.hop_length + frontend.win_length
        self.piece_hop = max_frames * frontend.hop_length

    def rows(self, blocks: Iterator[Waveform]) -> Iterator[Iterator[Waveform]]:
        """The rows of a clip, each as the sound of its pieces; a row is to be used up before the next is asked for."""
        frame = self.frontend.hop_length  # new samples that make one more: the last piece has a frame at least
        if self.size is None or self.hop is None:
            yield cut(blocks, self.piece, self.piece_hop, frame)
            return
        for window in cut(blocks, self.size, self.hop, self.frontend.win_length):
            yield cut(iter([window]), self.piece, self.piece_hop, frame)

    def places(self, n_rows: int, n_samples: int) -> NDArray[np.float64]:
        """`(R, 2)`: where in its clip each window begins, and how long it is, in seconds."""
        assert self.size is not None
        assert self.hop is not None
        starts = np.arange(n_rows) * self.hop
        lengths = np.minimum(self.size, n_samples - starts)
        return np.stack([starts, lengths], axis=1) / self.frontend.sample_rate

    def as_dict(self) -> dict[str, int | None]:
        """Samples of a window and of a hop, for a header."""
        return {"window": self.size, "hop": self.hop if self.size is not None else None}

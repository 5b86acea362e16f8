"""Events → rows of embeddings: batches of one padded length, a mean a row, committed at ends of clips.

Which pieces share a batch depends only on what came since the last commit. So a run that goes on from a commit makes
the same batches, and the same bits, as one that was never stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from decar.audio.crops import padded_frames
from decar.embedder.reading import ClipEnd, Event, Piece, RowEnd
from decar.models import Encoder
from decar.models.embed import embed_pieces, evaluating

BLOCK_FRAMES = 64 * 998  # ten minutes of sound: what is in memory at once, and what a kill costs at most


class NotFiniteError(ValueError):
    """The encoder made NaN or Inf of the clip at hand, the first that the sink has no end of."""


class Sink(Protocol):
    """Where rows go."""

    def rows(self, vectors: NDArray[np.float32]) -> None:
        """Further rows `(R, D)` of the clip at hand."""

    def clip(self, end: ClipEnd) -> None:
        """The clip at hand is over; the rows of one that cannot be used are to be forgotten."""

    def commit(self) -> None:
        """Go on from here after a kill."""


def run(
    events: Iterable[Event],
    encoder: Encoder,
    sink: Sink,
    *,
    batch_size: int,
    device: str,
    advance: Callable[[int], None],
) -> None:
    """Embed all that comes, with the encoder in eval mode on `device`; it is put back after that.

    Raises:
        NotFiniteError: A row is not finite; it has not been given to the sink.
    """
    home = next(encoder.parameters()).device
    encoder.to(device)
    try:
        with evaluating(encoder):
            _embed_blocks(events, encoder, sink, batch_size, device, advance)
    finally:
        encoder.to(home)


def _embed_blocks(
    events: Iterable[Event], encoder: Encoder, sink: Sink, batch_size: int, device: str, advance: Callable[[int], None]
) -> None:
    block: list[Event] = []
    held = since = 0
    mean = _Mean(encoder.dim)

    def close() -> None:
        nonlocal held
        vectors = iter(_forward([e.mel for e in block if isinstance(e, Piece)], encoder, batch_size, device))
        mean.replay(block, vectors, sink, advance)
        block.clear()
        held = 0

    for event in events:
        block.append(event)
        if isinstance(event, Piece):
            frames = padded_frames(len(event.mel), min_frames=encoder.min_frames, max_frames=encoder.max_frames)
            held, since = held + frames, since + frames
        if isinstance(event, ClipEnd) and since >= BLOCK_FRAMES:
            close()
            sink.commit()
            since = 0
        elif held >= 2 * BLOCK_FRAMES:  # within a long recording
            close()
    close()
    sink.commit()


def _forward(mels: list[NDArray[np.float16]], encoder: Encoder, batch_size: int, device: str) -> NDArray[np.float32]:
    """`(n, D)`, a vector a piece."""
    if not mels:
        return np.empty((0, encoder.dim), np.float32)
    vectors: NDArray[np.float32] = embed_pieces(lambda x: encoder(x.to(device)), mels, encoder, batch_size).numpy()
    return vectors


class _Mean:
    """`embed_clips` of rows whose pieces come one by one: a row may be ten hours long."""

    def __init__(self, dim: int) -> None:
        self.total, self.weight = np.zeros(dim, np.float64), 0

    def replay(
        self, block: list[Event], vectors: Iterable[NDArray[np.float32]], sink: Sink, advance: Callable[[int], None]
    ) -> None:
        vectors, rows = iter(vectors), []
        for event in block:
            if isinstance(event, Piece):
                self.total += len(event.mel) * next(vectors).astype(np.float64)
                self.weight += len(event.mel)
            elif isinstance(event, RowEnd):
                if self.weight:  # a single piece comes out as it went in: both steps are exact in float64
                    rows.append((self.total / self.weight).astype(np.float32))
                    if not np.isfinite(rows[-1]).all():
                        raise NotFiniteError
                self._forget()
            else:
                if rows:
                    sink.rows(np.stack(rows))
                rows = []
                sink.clip(event)
                self._forget()
                advance(1)
        if rows:
            sink.rows(np.stack(rows))

    def _forget(self) -> None:
        self.total[:], self.weight = 0.0, 0


class Memory:
    """A sink that keeps all rows."""

    def __init__(self) -> None:
        self.vectors: list[NDArray[np.float32]] = []
        self.ends: list[ClipEnd] = []
        self.counts: list[int] = []
        self._begin = 0

    def rows(self, vectors: NDArray[np.float32]) -> None:
        """See `Sink`."""
        self.vectors.append(vectors)

    def clip(self, end: ClipEnd) -> None:
        """See `Sink`."""
        if end.reason:
            del self.vectors[self._begin :]
        self.counts.append(sum(map(len, self.vectors[self._begin :])))
        self._begin = len(self.vectors)
        self.ends.append(end)

    def commit(self) -> None:
        """Nothing to be done."""

"""`data.stream=true`: clips are read and decoded as they come, once a pass, and no store holds them all.

What waits in the shuffle buffer are references (file, start, duration), not sound. All ranks go through the same
references, and each decodes the clips of its own places in the batches. A batch is a pure function of the seed and its
number, so a resume skips references and decodes nothing twice. A small store of a sample takes the place of the store
of all clips wherever figures are made.
"""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from decar.audio import LogMelStore, Manifest
from decar.audio.build import SILENT
from decar.audio.clips import ClipEnd, Frames, Job, Piece, Windows, read_clips
from decar.audio.crops import stack
from decar.audio.logmel import BLOCK_FRAMES, FrontEnd
from decar.errors import ConfigError, TrainingError, check_whole
from decar.pretrain.datamodule import Loader, PretrainData, Stored
from decar.pretrain.ranks import rank_and_size
from decar.pretrain.sampler import Stream, derive_seed

log = logging.getLogger(__name__)

NAMED_IN_LOG = 20  # clips that cannot be used
_ROWS = 2**14  # of a manifest whose paths are made at once

Item = TypeVar("Item")
Label = Callable[[Sequence[Frames], FrontEnd], NDArray[np.int64]]


def references(source: Manifest | Iterable[Job]) -> Iterable[Job]:
    """The clips of a source, to be iterated again and again; of a manifest without a list of all of them."""
    return _Rows(source) if isinstance(source, Manifest) else source


@dataclass(frozen=True)
class _Rows:
    manifest: Manifest

    def __len__(self) -> int:
        return len(self.manifest)

    def __iter__(self) -> Iterator[Job]:
        rows = np.arange(len(self))
        for first in range(0, len(self), _ROWS):
            yield from self.manifest.take(rows[first : first + _ROWS]).jobs


def shuffled(items: Iterable[Item], size: int, seed: int) -> Iterator[Item]:
    """All items in random order; an item leaves a buffer of `size` when the next one comes in."""
    rng, coming = random.Random(seed), iter(items)
    buffer = list(islice(coming, size))
    for item in coming:
        place = rng.randrange(size)
        yield buffer[place]
        buffer[place] = item
    rng.shuffle(buffer)
    yield from buffer


def endless(clips: Iterable[Job], buffer: int, seed: int, skip: int = 0) -> Iterator[Job]:
    """Pass after pass over the clips, each in an order of its own, from clip `skip` on.

    Raises:
        TrainingError: A pass has no clips: the source is empty, or can be iterated only once.
    """
    first, skip = divmod(skip, len(clips)) if isinstance(clips, Sized) and len(clips) else (0, skip)
    for number in count(first):
        n = 0
        for n, clip in enumerate(shuffled(clips, buffer, derive_seed(Stream.ORDER, seed, number)), 1):
            if n > skip:
                yield clip
        skip = max(0, skip - n)
        if not n:
            raise TrainingError(
                f"the stream has no clips in pass {number + 1}: give a source with clips that can be read again from "
                "its beginning, or fewer steps (trainer.max_epochs, sampler.every_n_steps)"
            )


def sample_of(source: Manifest | Iterable[Job], n: int, seed: int) -> Manifest:
    """The clips that are watched: random ones of a manifest, the first ones of another source."""
    if isinstance(source, Manifest):
        rng = np.random.default_rng(derive_seed(Stream.HEALTH, seed, 5))
        return source.take(np.sort(rng.permutation(len(source))[:n]))
    jobs = [(str(Path(file).absolute()), start, duration) for file, start, duration in islice(iter(source), n)]
    return Manifest(pd.DataFrame(jobs, columns=["path", "start", "duration"]), Path("/"))


def read_pieces(
    jobs: Iterable[tuple[Job, int]], frontend: FrontEnd, threads: int
) -> Iterator[tuple[str, Frames | None]]:
    """Read each clip: (F, M) float16 log-mel of up to 10 s of it; or None, and which file it is and why.

    Of a longer clip a random stretch is kept, so its length does not matter to the memory. Stretches follow one another
    from the beginning, and each is as likely as it is long: the last may be a single frame.

    Args:
        jobs: Clips, each with a seed of its stretch.
        frontend: The numbers of the log-mel.
        threads: That decode, ahead of what is taken.
    """
    begun: deque[tuple[Job, int]] = deque()

    def noted() -> Iterator[Job]:
        for job, seed in jobs:
            begun.append((job, seed))
            yield job

    mel, frames, rng = None, 0, random.Random()  # of the clip so far
    for event in read_clips(noted(), Windows(None, None, frontend, BLOCK_FRAMES), threads):
        if isinstance(event, Piece):
            if not frames:
                rng.seed(begun[0][1])
            frames += len(event.mel)
            mel = event.mel if rng.randrange(frames) < len(event.mel) else mel
        elif isinstance(event, ClipEnd):
            (file, _, _), _ = begun.popleft()
            reason = event.reason or (SILENT if event.silent else "")
            yield (f"{file}: {reason}", None) if reason else ("", mel)
            mel, frames = None, 0


class StreamData(PretrainData):
    """Batches of a stream: two crops of each clip, whose places in the batch lie half of it apart.

    A clip that cannot be used is left out: another one of the batch has more crops.

    Args:
        clips: Files with start (s) and duration (s; None: to the end), to be iterated anew in each pass. Of a clip
            longer than 10 s each pass takes crops of one random stretch of 10 s.
        store: Log-mels of the sample.
        buffer: References that wait in random order.
        label: From log-mels (F, M) to labels `(B, H)`, see `FittedDescriptors`; None: `H` is 0.
        options: As of `PretrainData`; `every_n_steps` is needed where `clips` has no length, and `num_workers` are
            threads, one at least.
    """

    def __init__(
        self, clips: Manifest | Iterable[Job], store: LogMelStore, *, buffer: int = 10_000, label: Label | None = None,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(store, **options)
        check_whole("data.buffer", buffer, 1)
        self.clips, self.buffer, self.label = references(clips), buffer, label
        self.unusable = 0  # clips met so far
        if self.every_n_steps is None and not isinstance(self.clips, Sized):
            raise ConfigError("a stream of unknown length: give the length of an epoch in steps, sampler.every_n_steps")

    @property
    def n_clips(self) -> int:
        """Clips of a pass; where that is not known, of the sample."""
        return len(self.clips) if isinstance(self.clips, Sized) else len(self.store)

    def named(self, index: Tensor) -> str:
        """A description of some clips of a batch, for an error."""
        return f"{len(index)} crops of the stream"

    def targets(self, index: Tensor) -> Tensor:
        """The labels `(B, H)`, which come with the batch."""
        return index

    def train_dataloader(self) -> Loader:
        """The loader of all epochs."""
        self._loader = StreamLoader(self)
        return self._loader

    def batches_from(self, first: int) -> Generator[Stored, None, None]:
        """This rank's share of all batches from number `first` on, with labels `(B, H)` in the place of indices."""
        assert self.labels is not None
        rank, size = rank_and_size()
        per_batch = self.batch_size // self.labels.views
        places = range(rank, self.batch_size, size)
        own = sorted({place % per_batch for place in places})  # clips of a batch that this rank reads
        coming = endless(self.clips, self.buffer, self.seed, first * per_batch)
        batches = enumerate(iter(lambda: list(islice(coming, per_batch)), []), first)
        jobs = ((clips[i], derive_seed(Stream.CROPS, self.seed, b, i)) for b, clips in batches for i in own)
        pieces = read_pieces(jobs, self.store.frontend, self.num_workers or 1)
        for number in count(first):
            read = self._usable([next(pieces) for _ in own], number)
            # shares of the room that a clip leaves: other ranks do not know how long it is
            shares = np.random.default_rng(derive_seed(Stream.CROPS, self.seed, number)).random(self.batch_size)
            which = [own.index(place % per_batch) for place in places]
            crops = [self._crop(read[i], shares[place]) for i, place in zip(which, places, strict=True)]
            yield *stack(crops, self.crop_frames), torch.from_numpy(self._labels(read)[which])

    def _crop(self, mel: Frames, share: float) -> Frames:
        first = int(share * (max(len(mel) - self.crop_frames, 0) + 1))
        return mel[first : first + self.crop_frames]

    def _labels(self, mels: Sequence[Frames]) -> NDArray[np.int64]:
        return np.empty((len(mels), 0), np.int64) if self.label is None else self.label(mels, self.store.frontend)

    def _usable(self, read: Sequence[tuple[str, Frames | None]], number: int) -> list[Frames]:
        """The pieces of a batch, others in the place of those that are missing.

        Raises:
            TrainingError: None can be used.
        """
        good = [mel for _, mel in read if mel is not None]
        reasons = [reason for reason, mel in read if mel is None]
        if not good:
            raise TrainingError(f"none of the {len(read)} clips of batch {number + 1} can be used: {reasons[0]}")
        for reason in reasons[: max(0, NAMED_IN_LOG - self.unusable)]:
            log.warning("left out of the stream: %s", reason)
        self.unusable += len(reasons)
        return [good[place % len(good)] if mel is None else mel for place, (_, mel) in enumerate(read)]


class StreamLoader:
    """The batches of an epoch, the next ones of the stream; reading goes on between two epochs.

    Its state is `{epoch, done, taken}`, so that a run resumed within an epoch continues with the next batch.
    """

    def __init__(self, data: StreamData) -> None:
        self._data = data
        self.epoch, self.done, self.taken = -1, 0, 0  # `taken` batches in all epochs
        self._batches: Generator[Stored, None, None] | None = None

    def __len__(self) -> int:
        return self._data.steps_per_epoch

    def __iter__(self) -> Iterator[Stored]:
        epoch = self._data.current_epoch()
        self._data.need_labels()  # the hook does not run in the epoch after a checkpoint of a last batch
        self.done = self.done if self.epoch == epoch else 0
        self.epoch = epoch
        self._batches = self._batches or self._data.batches_from(self.taken)
        try:
            for batch in islice(self._batches, len(self) - self.done):
                self.done += 1
                self.taken += 1
                yield batch
        except GeneratorExit:  # the rest of the epoch is not trained on
            self.close()
            raise

    def close(self) -> None:
        """Stop reading ahead: a thread that waits for room would keep the process from ending."""
        if self._batches is not None:
            self._batches.close()
            self._batches = None

    def state_dict(self) -> dict[str, int]:
        """The position in the stream."""
        return {"epoch": self.epoch, "done": self.done, "taken": self.taken}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from a position."""
        self.epoch, self.done, self.taken = (int(state[key]) for key in ("epoch", "done", "taken"))
        self.close()

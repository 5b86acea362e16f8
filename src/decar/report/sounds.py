"""Clips made small for a page: the first seconds as Opus, the log-mel as a WebP, both as data URLs.

Measured on the bundled clips (1.3 s on average): 3.6 kB of text for the sound, which takes 23 ms to encode, and less
than 1 kB for the picture; hence few sounds and many pictures.
"""

import io
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from decar.audio import LogMelStore, decode
from decar.audio.picture import data_uri, opus_uri
from decar.errors import AudioError

log = logging.getLogger(__name__)

SECONDS = 4.0  # of a clip, that are heard and seen
RATE = 16_000  # Hz; one of the five that Opus has
QUALITY = 0.95  # libsndfile's compression_level: (1 - q) * 250 + 6 kbit/s, here 18
MAX_SOUNDS = 500  # clips that can be heard
BYTES = 6_000_000  # of all sounds and pictures on a page
NO_ROOM = "not among the clips whose sound is on this page"
WIDTH = 160  # most pixels of a picture; its height is the number of mel bands


@dataclass(frozen=True)
class Sound:
    """One clip on the page: data URLs, "" for what there is none of, and why."""

    audio: str
    picture: str
    fault: str = ""

    @property
    def size(self) -> int:
        """Bytes that it takes on the page."""
        return len(self.audio) + len(self.picture) + len(self.fault)


def order_of(groups: Sequence[Sequence[Sequence[int]]], others: Iterable[int]) -> list[int]:
    """Whose turn it is: the first clip of every list of the first group, the second of every list, …; then the rest.

    >>> order_of([[[1, 2], [3]], [[3, 4]]], [4, 5])
    [1, 3, 2, 4, 5]
    """
    turns: dict[int, None] = {}
    for lists in groups:
        for place in range(max(map(len, lists), default=0)):
            turns.update(dict.fromkeys(one[place] for one in lists if place < len(one)))
    turns.update(dict.fromkeys(others))
    return list(turns)


def sounds(store: LogMelStore, turns: Sequence[int], budget: int = BYTES, most: int = MAX_SOUNDS) -> dict[int, Sound]:
    """The clips of a store in this order, until `budget` bytes are full; after `most` clips only pictures.

    A file that has gone or cannot be read any more has its picture, and the reason in place of the sound.
    """
    found: dict[int, Sound] = {}
    left = budget
    for index, sound in _made(store, turns, most):
        if sound.size > left:
            break
        found[index], left = sound, left - sound.size
    return found


def _made(store: LogMelStore, turns: Sequence[int], most: int) -> Iterator[tuple[int, Sound]]:
    files, stretches = store.manifest.files, store.manifest.stretches
    low, high = loudness(store, turns)
    for place, index in enumerate(turns):
        start, duration = stretches[index]
        picture = spectrogram(store[index], low, high, _frames(store))
        if place >= most:
            yield index, Sound("", picture, NO_ROOM)
            continue
        try:
            length = SECONDS if duration is None else min(duration, SECONDS)
            wave = decode(files[index], start=start, duration=length, sample_rate=RATE)
            yield index, Sound(opus(wave), picture)
        except (AudioError, OSError, RuntimeError) as error:  # soundfile's errors are RuntimeErrors
            yield index, Sound("", picture, " ".join(str(error).split())[:200])


def _frames(store: LogMelStore) -> int:
    return round(SECONDS * store.frontend.sample_rate / store.frontend.hop_length)


def loudness(store: LogMelStore, turns: Sequence[int]) -> tuple[float, float]:
    """Log-mel values that are drawn black and white in every picture: the 2 % and 99.8 % of a few clips."""
    some = [store[i] for i in turns[:200] if len(store[i])]
    if not some:
        return store.frontend.silence, 0.0
    low, high = np.percentile(np.concatenate(some).astype(np.float32), [2, 99.8])
    return float(low), float(max(high, low + 1))


def spectrogram(mel: NDArray[np.float16], low: float, high: float, frames: int) -> str:
    """(F, M) → a grey WebP, time to the right, high bands up; "" for a clip without frames."""
    piece = mel[:frames].astype(np.float32)
    if not len(piece):
        return ""
    grey = np.clip((piece.T[::-1] - low) / (high - low), 0, 1) * 255
    image = Image.fromarray(grey.astype(np.uint8), mode="L")
    if image.width > WIDTH:
        image = image.resize((WIDTH, image.height), Image.Resampling.BOX)
    with io.BytesIO() as file:
        image.save(file, "WEBP", quality=35, method=3)
        return data_uri("image/webp", file.getvalue())


def opus(wave: NDArray[np.float32]) -> str:
    """(T,) at `RATE` → Ogg Opus, scaled to a peak of 0.9: quiet clips are to be heard too."""
    if not len(wave):
        raise AudioError("holds no samples")
    peak = float(np.abs(wave).max())
    loud = wave * (0.9 / peak) if peak > 0 else wave
    return opus_uri(loud, RATE, QUALITY)

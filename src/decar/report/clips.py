"""The clips on a page: a sample of them, a map in two dimensions, both ends of every cluster, sounds and pictures.

The map is scikit-learn's t-SNE: scikit-learn is there already and takes 5.5 s for the 1,991 bundled clips on one core.
umap-learn would bring numba and llvmlite; its maps were not compared.

A sound is the first seconds as Opus, a picture the log-mel as WebP, both as data URLs. Measured on the bundled clips
(1.3 s on average): 3.6 kB of text for the sound, which takes 23 ms to encode, and less than 1 kB for the picture; hence
few sounds and many pictures. Letters: `N` clips, `D` embedding, `M` mel bands, `F` frames, `T` samples.
"""

import logging
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from decar.audio import FrontEnd, Manifest, decode
from decar.audio.logmel import waveforms_to_frames
from decar.audio.parallel import in_order
from decar.audio.picture import image_uri, opus_uri
from decar.clustering.base import row_blocks
from decar.cores import cpu_count
from decar.errors import AudioError, one_line

log = logging.getLogger(__name__)

MAX_CLIPS = 3000  # embedded and drawn; more neither fit a page nor can be distinguished
PERPLEXITY = 30.0
SECONDS = 4.0  # of a clip, that are heard and seen
RATE = 16_000  # Hz; one of the five that Opus has
QUALITY = 0.95  # libsndfile's compression_level: (1 - q) * 250 + 6 kbit/s, here 18
MAX_SOUNDS = 500  # clips that can be heard
BYTES = 6_000_000  # of all sounds and pictures on a page
ALIKE = 0.95  # cosine of clips that are called near duplicates; see docs/report.md for what it was chosen by
WIDTH = 160  # most pixels of a picture; its height is the number of mel bands


def sample(n: int, seed: int, most: int = MAX_CLIPS) -> NDArray[np.int64]:
    """Which of `n` clips are looked at: all, or `most` drawn evenly without repetition, in rising order."""
    if n <= most:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, most, replace=False))


def tsne(unit: NDArray[np.float32], seed: int) -> NDArray[np.float64]:
    """`(N, D)` → `(N, 2)`: t-SNE of the first 50 principal components, begun from the first two; none beyond ±1."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    n = len(unit)
    if n < 5 or not np.ptp(unit, axis=0).any():  # t-SNE needs neighbours; equal vectors stay one point
        angle = 2 * np.pi * np.arange(n) / max(n, 1)
        return np.stack([np.cos(angle), np.sin(angle)], axis=1)
    reduced = PCA(min(50, n - 1, unit.shape[1]), random_state=seed).fit_transform(unit)
    method = TSNE(2, perplexity=min(PERPLEXITY, (n - 1) / 3), init="pca", random_state=seed, n_jobs=1)
    places: NDArray[np.float64] = method.fit_transform(reduced).astype(np.float64)
    places -= (places.max(axis=0) + places.min(axis=0)) / 2
    scaled: NDArray[np.float64] = places / np.abs(places).max()
    return scaled


def middles(unit: NDArray[np.float32], clusters: NDArray[np.int64]) -> NDArray[np.float32]:
    """`(N,)`: the cosine of each clip to the mean direction of its cluster.

    Args:
        unit: `(N, D)`, rows of length 1.
        clusters: `(N,)`.
    """
    cosine = np.empty(len(unit), np.float32)
    for cluster in np.unique(clusters).tolist():
        rows = np.flatnonzero(clusters == cluster)
        middle = unit[rows].mean(axis=0)
        cosine[rows] = unit[rows] @ (middle / max(float(np.linalg.norm(middle)), 1e-12))
    return cosine


def ends(
    cosine: NDArray[np.float32], clusters: NDArray[np.int64], each: int = 3
) -> tuple[list[list[int]], list[list[int]]]:
    """For each cluster the clips nearest to its middle, and for each those farthest from it, the farthest first.

    Args:
        cosine: `(N,)`, of `middles`.
        clusters: `(N,)`.
        each: Clips at either end; a small cluster has fewer, and no clip is at both ends.
    """
    near, far = list[list[int]](), list[list[int]]()
    for cluster in np.unique(clusters).tolist():
        rows = np.flatnonzero(clusters == cluster)
        order = rows[np.argsort(-cosine[rows], kind="stable")].tolist()
        near.append(order[:each])
        far.append(order[each:][-each:][::-1])
    return near, far


def near_duplicates(unit: NDArray[np.float32], least: float = ALIKE) -> NDArray[np.int64]:
    """`(N,)`: the number of the group of near-identical clips that each is in, the largest group first; -1 for none.

    Clips are in one group if a chain of cosines of at least `least` leads from one to the other.

    Args:
        unit: `(N, D)`, of `half_standardised`; rows of zeros, clips at the very mean, are alike.
        least: See `ALIKE`.
    """
    from scipy.sparse import csr_array, vstack
    from scipy.sparse.csgraph import connected_components

    unit = np.concatenate([unit, (~unit.any(axis=1, keepdims=True)).astype(unit.dtype)], axis=1)
    graph = vstack([csr_array((unit[rows] @ unit.T >= least).astype(np.int8)) for rows in row_blocks(len(unit), 1024)])
    groups = connected_components(graph, directed=False)[1]
    sizes = np.bincount(groups)
    places = np.where(sizes > 1, np.argsort(np.argsort(-sizes, kind="stable")), -1)
    found: NDArray[np.int64] = places[groups].astype(np.int64)
    return found


@dataclass(frozen=True)
class Sound:
    """One clip on the page: data URLs, "" where there is none; and why its sound cannot be read, if so."""

    audio: str
    picture: str
    fault: str = ""

    @property
    def size(self) -> int:
        """Bytes that it takes on the page."""
        return len(self.audio) + len(self.picture) + len(self.fault)


def order_of(groups: Sequence[Sequence[Sequence[int]]], others: Iterable[int]) -> list[int]:
    """Clips by priority: the first clip of every list of the first group, the second of every list, …; then the rest.

    >>> order_of([[[1, 2], [3]], [[3, 4]]], [4, 5])
    [1, 3, 2, 4, 5]
    """
    turns: dict[int, None] = {}
    for lists in groups:
        for place in range(max(map(len, lists), default=0)):
            turns.update(dict.fromkeys(one[place] for one in lists if place < len(one)))
    turns.update(dict.fromkeys(others))
    return list(turns)


class Clips(Protocol):
    """What is heard and seen: a `LogMelStore`, or `Decoded`."""

    @property
    def manifest(self) -> Manifest:
        """Which clips they are."""
        ...

    @property
    def frontend(self) -> FrontEnd:
        """The numbers of the log-mels."""
        ...

    def __getitem__(self, index: int, /) -> NDArray[np.float16]: ...


class Decoded:
    """Clips without a store: the log-mel of the first seconds of each is made when it is asked for."""

    def __init__(self, manifest: Manifest, frontend: FrontEnd) -> None:
        self.manifest, self.frontend = manifest, frontend
        self._jobs, self._log_mel = manifest.jobs, frontend.transform()
        self._read = lru_cache(maxsize=256)(self._make)

    def __getitem__(self, index: int) -> NDArray[np.float16]:
        """(F, M) of clip `index`, at most `SECONDS`; without frames where it cannot be read."""
        return self._read(index)

    def _make(self, index: int) -> NDArray[np.float16]:
        file, start, duration = self._jobs[index]
        length = SECONDS if duration is None else min(duration, SECONDS)
        try:
            wave = decode(file, start=start, duration=length, sample_rate=self.frontend.sample_rate)
            return waveforms_to_frames(self._log_mel, [*self.frontend.levelled([wave])])[0]
        except (AudioError, OSError, RuntimeError):  # `sounds` reads the clip again and reports it
            return np.empty((0, self.frontend.n_mels), np.float16)


def sounds(store: Clips, turns: Sequence[int], budget: int = BYTES, most: int = MAX_SOUNDS) -> dict[int, Sound]:
    """The clips of a store in this order, until `budget` bytes are full; after `most` clips only pictures.

    A file that no longer exists or cannot be read has its picture, and the reason in place of the sound.
    """
    files, stretches = store.manifest.files, store.manifest.stretches
    low, high = loudness(store, turns)
    frames = round(SECONDS * store.frontend.sample_rate / store.frontend.hop_length)

    def make(job: tuple[int, int]) -> list[tuple[int, Sound]]:
        place, index = job
        picture = spectrogram(store[index], low, high, frames)
        return [(index, _heard(files[index], *stretches[index], picture) if place < most else Sound("", picture))]

    found, left = dict[int, Sound](), budget
    with closing(in_order(make, enumerate(turns), cpu_count())) as made:
        for index, sound in made:
            if sound.size > left:
                break
            found[index], left = sound, left - sound.size
    return found


def _heard(file: Path, start: float, duration: float | None, picture: str) -> Sound:
    try:
        length = SECONDS if duration is None else min(duration, SECONDS)
        return Sound(opus(decode(file, start=start, duration=length, sample_rate=RATE)), picture)
    except (AudioError, OSError, RuntimeError) as error:  # soundfile's errors are RuntimeErrors
        return Sound("", picture, one_line(error))


def loudness(store: Clips, turns: Sequence[int]) -> tuple[float, float]:
    """Log-mel values that are black and white in every picture: the 2 % and 99.8 % quantiles of a few clips."""
    some = [mel for mel in map(store.__getitem__, turns[:200]) if len(mel)]
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
    return image_uri(grey.astype(np.uint8), "webp", max_width=WIDTH, quality=35, method=3)


def opus(wave: NDArray[np.float32]) -> str:
    """(T,) at `RATE` → Ogg Opus, scaled to a peak of 0.9 so that quiet clips can be heard."""
    if not len(wave):
        raise AudioError("holds no samples")
    return opus_uri(loud(wave), RATE, QUALITY)


def loud(wave: NDArray[np.float32]) -> NDArray[np.float32]:
    """A waveform scaled to a peak of 0.9; silence stays silence."""
    peak = float(np.abs(wave).max(initial=0.0))
    return wave * (0.9 / peak) if peak > 0 else wave

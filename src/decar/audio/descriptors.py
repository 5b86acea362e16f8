"""Log-mel → plain vectors of its spectrum and shape, without any learning: first pseudo-labels, and the baseline."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from scipy.fft import dctn

from decar.audio.logmel import FrontEnd
from decar.audio.progress import progress_bar
from decar.audio.store import LogMelStore
from decar.errors import ConfigError

Doubles = npt.NDArray[np.float64]
Descriptor = Callable[[Doubles, FrontEnd], Doubles]

_ROWS_AT_ONCE = 65_536


def logmel_statistics(mel: npt.NDArray[np.float16] | npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(F, M) log-mel → (2M,) float32: the mean of each band over time, then its standard deviation.

    Raises:
        ValueError: the clip has no frames.
    """
    values = _frames(mel)
    return np.concatenate([values.mean(axis=0), values.std(axis=0)]).astype(np.float32)


def spectrum(mel: Doubles, frontend: FrontEnd) -> Doubles:
    """(F, M) → (M,): mean of each band over time, without the overall level."""
    mean: Doubles = mel.mean(axis=0)
    relative: Doubles = mean - mean.mean()
    return relative


def variation(mel: Doubles, frontend: FrontEnd) -> Doubles:
    """(F, M) → (M,): standard deviation of each band over time."""
    deviation: Doubles = mel.std(axis=0)
    return deviation


def envelope(mel: Doubles, frontend: FrontEnd) -> Doubles:
    """(F, M) → (32,): the level over time, whatever the clip's length."""
    return resize(mel.mean(axis=1, keepdims=True), 32)[:, 0]


def change(mel: Doubles, frontend: FrontEnd) -> Doubles:
    """(F, M) → (M + 1,): mean absolute difference of each band from frame to frame, then the overall level."""
    steps = np.abs(np.diff(mel, axis=0)).mean(axis=0) if len(mel) > 1 else np.zeros(mel.shape[1])
    return np.append(steps, mel.mean())


def shape(mel: Doubles, frontend: FrontEnd) -> Doubles:
    """(F, M) → (140,): coarse shape of the whole clip, squeezed to 48 frames: the lowest 14 × 10 of its 2-D DCT."""
    return _low_dct(resize(mel, 48), 14, 10)


def centre(mel: Doubles, frontend: FrontEnd) -> Doubles:
    """(F, M) → (192,): coarse shape of the middle 96 frames at their own pace: the lowest 16 × 12 of their 2-D DCT."""
    first = max(len(mel) - 96, 0) // 2
    piece = mel[first : first + 96]
    padded = np.full((96, mel.shape[1]), frontend.silence)
    padded[: len(piece)] = piece
    return _low_dct(padded, 16, 12)


DESCRIPTORS: dict[str, Descriptor] = {
    "spectrum": spectrum,
    "variation": variation,
    "envelope": envelope,
    "change": change,
    "shape": shape,
    "centre": centre,
}


def describe(store: LogMelStore, names: Sequence[str], *, progress: bool = True) -> dict[str, npt.NDArray[np.float32]]:
    """Descriptors of every clip of a store: by name, (N, d) each, in store order.

    Args:
        store: the N clips, all with frames.
        names: which of `DESCRIPTORS`, each once.
        progress: show how far it is, on stderr.

    Raises:
        ConfigError: there is no descriptor of such a name, or one is named twice.
        ValueError: a clip has no frames.
    """
    _check_names(names)
    rows: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in names}
    with progress_bar("describing all clips", len(store), enabled=progress) as advance:
        for i in range(len(store)):
            mel = _frames(store[i])
            for name in names:
                rows[name].append(DESCRIPTORS[name](mel, store.frontend).astype(np.float32))
            advance(1)
    return {name: np.stack(found) for name, found in rows.items()}


def input_statistics(store: LogMelStore) -> tuple[float, float]:
    """Mean and standard deviation of all log-mel values of a store's clips; deviation 1.0 where nothing varies.

    Summed clip by clip in float64: frames of the memory map that belong to none of its clips do not count.
    """
    count, total, squares = 0, 0.0, 0.0
    for i in range(len(store)):
        for start in range(0, int(store.lengths[i]), _ROWS_AT_ONCE):
            values = np.asarray(store[i][start : start + _ROWS_AT_ONCE], np.float64)
            count += values.size
            total += float(values.sum())
            squares += float(np.square(values).sum())
    mean = total / max(count, 1)
    variance = squares / max(count, 1) - mean**2
    return mean, float(np.sqrt(variance)) if variance > 1e-9 * max(1.0, mean**2) else 1.0


def resize(mel: Doubles, n_frames: int) -> Doubles:
    """(F, M) → (n_frames, M): time cut into equal stretches, each averaged; frames count by the share inside one."""
    edges = np.linspace(0, len(mel), n_frames + 1)
    below = np.floor(edges).astype(np.int64)
    inside = (edges - below)[:, None]
    summed = np.concatenate([np.zeros((1, mel.shape[1])), np.cumsum(mel, axis=0)])
    upto = summed[below] * (1 - inside) + summed[np.minimum(below + 1, len(mel))] * inside
    averages: Doubles = np.diff(upto, axis=0) / (len(mel) / n_frames)
    return averages


def _check_names(names: Sequence[str]) -> None:
    for i, name in enumerate(names):
        if name not in DESCRIPTORS:
            close = difflib.get_close_matches(name, DESCRIPTORS, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ConfigError(f"labels.descriptors: no descriptor {name!r}; {hint}there are {', '.join(DESCRIPTORS)}")
        if name in names[:i]:
            raise ConfigError(f"labels.descriptors: {name!r} is there twice; leave one out")


def _low_dct(mel: Doubles, n_bands: int, n_frames: int) -> Doubles:
    """(F, M) → the lowest coefficients over bands and time of its orthonormal 2-D DCT-II, flattened."""
    low: Doubles = dctn(mel.T, norm="ortho")[:n_bands, :n_frames].ravel()
    return low


def _frames(mel: npt.NDArray[np.float16] | npt.NDArray[np.float32]) -> Doubles:
    if len(mel) == 0:
        raise ValueError("a clip without frames has no statistics: take LogMelStore.usable() first")
    return np.asarray(mel, np.float64)

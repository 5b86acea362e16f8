"""Log-mel → plain vectors of its spectrum, without any learning: the baseline that an embedding has to beat."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def logmel_statistics(mel: npt.NDArray[np.float16] | npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(F, M) log-mel → (2M,) float32: the mean of each band over time, then its standard deviation.

    Raises:
        ValueError: the clip has no frames.
    """
    if len(mel) == 0:
        raise ValueError("a clip without frames has no statistics: take LogMelStore.usable() first")
    values = np.asarray(mel, np.float64)
    return np.concatenate([values.mean(axis=0), values.std(axis=0)]).astype(np.float32)

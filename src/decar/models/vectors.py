"""Standardising vectors, the same way wherever vectors are compared or classified."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray


def standardiser(blocks: Iterable[NDArray[Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean `(D,)` and factor `(D,)` that give every column zero mean and unit variance: `(x - mean) * factor`.

    The factor of a constant column is 0. `StandardScaler` takes 1, with which a unit that was silent on these rows
    would dominate the distance to any row on which it is not.

    Args:
        blocks: The rows, in one or more blocks `(n, D)`; they are read once.
    """
    n, mean, squares = 0, np.zeros(1), np.zeros(1)
    for block in blocks:
        wide = block.astype(np.float64)
        centre, total = wide.mean(axis=0), n + len(wide)
        # the sums of squares of two sets about their joint mean (Chan, Golub and LeVeque, 1983)
        squares = squares + ((wide - centre) ** 2).sum(axis=0) + (centre - mean) ** 2 * (n * len(wide) / total)
        mean = mean + (centre - mean) * (len(wide) / total)
        n = total
    deviation = np.sqrt(squares / n)
    varies = deviation > 1e-6 * np.maximum(1e-6, np.abs(mean))  # not just float32 rounding of a constant
    return mean, np.divide(1.0, deviation, out=np.zeros_like(deviation), where=varies)

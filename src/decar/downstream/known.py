"""What fitting and choosing may look at, and what they hand back: no test clip passes through here."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32] | NDArray[np.float64]
Truth = NDArray[np.int64] | NDArray[np.bool_]
Scorer = Callable[[Floats], Floats]


class Known(NamedTuple):
    """Embeddings and truth of train and validation.

    Attributes:
        x_train: `(N, D)`.
        y_train: `(N,)` class, or `(N, C)` which labels a clip has.
        x_valid: As `x_train`.
        y_valid: As `y_train`.
        n_classes: `C`.
        refit: Whether what was chosen may be fitted again on train and validation together; not with few shots.
    """

    x_train: Floats
    y_train: Truth
    x_valid: Floats
    y_valid: Truth
    n_classes: int
    refit: bool = True

    def everything(self) -> tuple[Floats, Truth]:
        """Train and validation together."""
        return np.concatenate([self.x_train, self.x_valid]), np.concatenate([self.y_train, self.y_valid])


class Fitted(NamedTuple):
    """A classifier of raw embeddings: `(N, D)` → scores `(N, C)`, the larger the likelier."""

    scores: Scorer
    valid_value: float
    chosen: dict[str, float | int]
    history: list[dict[str, float | int]]


def standardiser(x: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean `(D,)` and factor `(D,)` that make every column of `x` `(N, D)` zero mean and unit variance.

    The factor of a column that does not vary is 0: a dead unit says nothing, and must not explode on other clips.
    """
    wide = x.astype(np.float64)
    mean, std = wide.mean(axis=0), wide.std(axis=0)
    alive = std > 1e-6 * np.maximum(1e-6, np.abs(mean))  # float32 noise around a constant is no variance
    return mean, np.divide(1.0, std, out=np.zeros_like(std), where=alive)

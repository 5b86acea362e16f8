"""What a probe hands back, and the count that both of its numbers come from."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Outcome:
    """A fitted probe, judged.

    Attributes:
        valid_accuracy: 0 to 1, of the chosen setting on validation, before any refit.
        test_accuracy: 0 to 1, on the test split, read once.
        test_confusion: `(C, C)` int64, rows the true class, columns the predicted one.
        chosen: The setting that validation chose.
        history: One entry per candidate or epoch, in the order tried.
    """

    valid_accuracy: float
    test_accuracy: float
    test_confusion: NDArray[np.int64]
    chosen: dict[str, float | int]
    history: list[dict[str, float | int]] = field(default_factory=list)


def confusion_matrix(truth: NDArray[np.int64], predicted: NDArray[np.int64], n_classes: int) -> NDArray[np.int64]:
    """Count `(C, C)` how often each true class (row) was taken for each class (column)."""
    cells = np.bincount(truth * n_classes + predicted, minlength=n_classes * n_classes)
    return cells.reshape(n_classes, n_classes).astype(np.int64)


def accuracy(confusion: NDArray[np.int64]) -> float:
    """Part of the clips on the diagonal, 0 to 1; 0 when there are none."""
    return float(np.trace(confusion) / max(1, confusion.sum()))

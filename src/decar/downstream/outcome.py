"""What a probe hands back, and the measures of its answers. `N` clips, `C` classes."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

SINGLE = ("accuracy", "balanced_accuracy", "macro_f1")  # of tasks with one class a clip; the first is what counts
MULTI = ("mAP",)  # of tasks with several labels a clip


@dataclass(frozen=True, eq=False)
class Outcome:
    """A fitted probe, judged.

    Attributes:
        valid_value: 0 to 1, of the chosen setting on validation, before any refit: accuracy, or mAP of several labels.
        metrics: 0 to 1, each measure of the task on the test split, read once; the first is what counts.
        confusion: `(C, C)` int64 of the test split, rows the true class, columns the predicted one; `(0, 0)` when
            clips have several labels.
        chosen: The setting that validation chose.
        history: One entry per candidate or epoch, in the order tried.
    """

    valid_value: float
    metrics: dict[str, float]
    confusion: NDArray[np.int64]
    chosen: dict[str, float | int]
    history: list[dict[str, float | int]] = field(default_factory=list)

    @property
    def metric(self) -> str:
        """Name of the measure that counts."""
        return next(iter(self.metrics))

    @property
    def test_value(self) -> float:
        """The measure that counts, on the test split."""
        return self.metrics[self.metric]


def score(scores: NDArray[np.floating], truth: NDArray[np.int64] | NDArray[np.bool_]) -> float:
    """The measure that counts: accuracy, or mAP where `truth` is `(N, C)`.

    Args:
        scores: `(N, C)`, the larger the likelier.
        truth: `(N,)` class, or `(N, C)` which labels a clip has.
    """
    return mean_average_precision(scores, truth) if truth.ndim == 2 else float(np.mean(scores.argmax(1) == truth))


def measure(
    scores: NDArray[np.floating], truth: NDArray[np.int64] | NDArray[np.bool_]
) -> tuple[dict[str, float], NDArray[np.int64]]:
    """All measures of some answers (as in `score`), and their confusion matrix."""
    if truth.ndim == 2:
        return {"mAP": mean_average_precision(scores, truth)}, np.zeros((0, 0), np.int64)
    confusion = confusion_matrix(truth.astype(np.int64), scores.argmax(1), scores.shape[1])
    return dict(zip(SINGLE, (accuracy(confusion), *per_class(confusion)), strict=True)), confusion


def mean_average_precision(scores: NDArray[np.floating], truth: NDArray[np.integer | np.bool_]) -> float:
    """Mean over labels of the area under precision over recall; labels that no clip has do not count."""
    present = truth.any(axis=0)
    return (
        float(average_precision_score(truth[:, present], scores[:, present], average="macro")) if present.any() else 0.0
    )


def confusion_matrix(truth: NDArray[np.int64], predicted: NDArray[np.int64], n_classes: int) -> NDArray[np.int64]:
    """Count `(C, C)` how often each true class (row) was taken for each class (column)."""
    cells = np.bincount(truth * n_classes + predicted, minlength=n_classes * n_classes)
    return cells.reshape(n_classes, n_classes).astype(np.int64)


def accuracy(confusion: NDArray[np.int64]) -> float:
    """Part of the clips on the diagonal, 0 to 1; 0 when there are none."""
    return float(np.trace(confusion) / max(1, confusion.sum()))


def per_class(confusion: NDArray[np.int64]) -> tuple[float, float]:
    """Balanced accuracy (mean recall) and macro-F1, both over the classes that the clips have."""
    true, said, right = confusion.sum(1), confusion.sum(0), np.diag(confusion)
    present = true > 0
    if not present.any():
        return 0.0, 0.0
    recall = right[present] / true[present]
    f1 = 2 * right[present] / (true + said)[present]
    return float(recall.mean()), float(f1.mean())

"""The ways of judging, the input and output of a probe, and the measures of its answers.

The score depends on the protocol (DESIGN, section 6), so more than one is reported. `N` clips, `D` embedding, `C`
classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, average_precision_score, confusion_matrix, f1_score, recall_score

from decar.errors import ConfigError, check_positive, check_whole

Floats: TypeAlias = NDArray[np.float32] | NDArray[np.float64]
Truth: TypeAlias = NDArray[np.int64] | NDArray[np.bool_]  # (N,) class, or (N, C) which labels a clip has
Scorer: TypeAlias = Callable[[Floats], Floats]  # (N, D) embeddings to (N, C) scores, the larger the likelier


@dataclass(frozen=True)
class PaperProtocol:
    """As the paper judges (section 4): raw embeddings, one linear layer, Adam, one learning rate.

    Attributes:
        lr: Learning rate of Adam.
        batch_size: Clips a step.
        max_epochs: Epochs trained; the one that is best on validation counts (the released code took the best on test).
        refit: Whether a new classifier is then trained for as many epochs on train and validation together; not with
            few shots. The paper divides most data sets 80:20 into train and test and names no validation split.

    Raises:
        ConfigError: A number is none, or is out of range.
    """

    name: ClassVar[Literal["paper"]] = "paper"
    lr: float = 1e-3
    batch_size: int = 64
    max_epochs: int = 50
    refit: bool = False

    def __post_init__(self) -> None:
        check_positive("protocol.lr", self.lr)
        if not isinstance(self.refit, bool):
            raise ConfigError(f"protocol.refit={self.refit}: give true or false")
        check_whole("protocol.batch_size", self.batch_size, 1)
        check_whole("protocol.max_epochs", self.max_epochs, 1)


@dataclass(frozen=True)
class SearchProtocol:
    """Standardised embeddings and a setting chosen on validation: the score does not depend on the embedding's scale.

    Attributes:
        strengths: Candidates for `C`, the inverse of the L2 penalty of the logistic regression (frozen).
        learning_rates: Candidates for Adam's learning rate (fine-tuning).
        batch_size: Clips a step of fine-tuning.
        max_epochs: Epochs of fine-tuning per candidate.

    Raises:
        ConfigError: A number is none, or is out of range, or a list has no numbers.
    """

    name: ClassVar[Literal["search"]] = "search"
    strengths: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2)
    learning_rates: Sequence[float] = (1e-4, 3e-4, 1e-3)
    batch_size: int = 64
    max_epochs: int = 50

    def __post_init__(self) -> None:
        for key in ("strengths", "learning_rates"):
            for value in _numbers(self, key, "numbers, as [0.001,0.01]"):
                check_positive(f"protocol.{key}", value)
        check_whole("protocol.batch_size", self.batch_size, 1)
        check_whole("protocol.max_epochs", self.max_epochs, 1)


@dataclass(frozen=True)
class KnnProtocol:
    """The nearest clips vote and nothing is trained. Frozen only.

    Attributes:
        neighbors: Candidates for the number of neighbours; validation chooses.

    Raises:
        ConfigError: A number is none, or is below 1, or the list has no numbers.
    """

    name: ClassVar[Literal["knn"]] = "knn"
    revision: ClassVar[str] = "half-standardised"  # since 0.3: results of before are of another measure
    neighbors: Sequence[int] = (1, 3, 5, 10, 20, 50)

    def __post_init__(self) -> None:
        for value in _numbers(self, "neighbors", "whole numbers, as [1,5,10]"):
            check_whole("protocol.neighbors", value, 1)


def _numbers(protocol: SearchProtocol | KnnProtocol, key: str, example: str) -> tuple[float, ...]:
    """A list of a protocol, turned into a tuple so that protocols from a configuration compare equal."""
    values = getattr(protocol, key)
    if not isinstance(values, list | tuple) or not values:
        raise ConfigError(f"protocol.{key}={values}: not allowed; give one or more {example}")
    object.__setattr__(protocol, key, tuple(values))
    return tuple(values)


Protocol: TypeAlias = PaperProtocol | SearchProtocol | KnnProtocol


class Known(NamedTuple):
    """The data for fitting and choosing: embeddings and truth of train and validation, never of test.

    Attributes:
        x_train: `(N, D)`.
        y_train: `(N,)` class, or `(N, C)` which labels a clip has.
        x_valid: As `x_train`.
        y_valid: As `y_train`.
        n_classes: `C`.
        refit: Whether the chosen setting may be fitted again on train and validation together; not with few shots.
    """

    x_train: Floats
    y_train: Truth
    x_valid: Floats
    y_valid: Truth
    n_classes: int
    refit: bool = True

    def final(self) -> tuple[Floats, Truth]:
        """The data for the chosen setting: train and validation, or train alone without `refit`."""
        if not self.refit:
            return self.x_train, self.y_train
        return np.concatenate([self.x_train, self.x_valid]), np.concatenate([self.y_train, self.y_valid])


class Fitted(NamedTuple):
    """A classifier of raw embeddings, and how its setting was chosen."""

    scores: Scorer
    valid_value: float
    chosen: dict[str, float | int]
    history: list[dict[str, float | int]]


@dataclass(frozen=True, eq=False)
class Outcome:
    """A fitted probe, judged.

    Attributes:
        valid_value: 0 to 1, of the chosen setting on validation, before any refit: accuracy, or mAP of several labels.
        metrics: 0 to 1, each measure of the task on the test split; the first is the score of the task.
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
        """Name of the score."""
        return next(iter(self.metrics))

    @property
    def test_value(self) -> float:
        """The score on the test split."""
        return self.metrics[self.metric]


def score(scores: Floats, truth: Truth) -> float:
    """Accuracy, or mAP where `truth` is `(N, C)`, of scores `(N, C)`."""
    if truth.ndim == 2:
        return mean_average_precision(scores, truth)
    return float(accuracy_score(truth, scores.argmax(1)))


def measure(scores: Floats, truth: Truth) -> tuple[dict[str, float], NDArray[np.int64]]:
    """All measures of some answers (as in `score`), and their confusion matrix.

    Balanced accuracy (mean recall) and macro-F1 are means over the classes that the clips have.
    """
    if truth.ndim == 2:
        return {"mAP": mean_average_precision(scores, truth)}, np.zeros((0, 0), np.int64)
    predicted, present = scores.argmax(1), np.unique(truth)
    measures = {
        "accuracy": float(accuracy_score(truth, predicted)),
        "balanced_accuracy": float(recall_score(truth, predicted, labels=present, average="macro")),
        "macro_f1": float(f1_score(truth, predicted, labels=present, average="macro")),
    }
    return measures, confusion_matrix(truth, predicted, labels=range(scores.shape[1]))


def mean_average_precision(scores: Floats, truth: Truth) -> float:
    """Mean over labels of the area under precision over recall; labels that no clip has do not count."""
    present = truth.any(axis=0)
    if not present.any():
        return 0.0
    return float(average_precision_score(truth[:, present], scores[:, present], average="macro"))

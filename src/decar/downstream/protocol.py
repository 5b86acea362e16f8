"""The ways of judging. The score depends on which one is used (DESIGN, section 6), so more than one is reported."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from decar.errors import ConfigError, check_positive, check_whole


@dataclass(frozen=True)
class PaperProtocol:
    """As the paper judges (section 4): raw embeddings, one linear layer, Adam, one learning rate.

    Attributes:
        lr: Learning rate of Adam.
        batch_size: Clips a step.
        max_epochs: Epochs trained; the one that is best on validation counts (the released code took the best on test).

    Raises:
        ConfigError: A number is none, or is out of range.
    """

    name: ClassVar[Literal["paper"]] = "paper"
    lr: float = 1e-3
    batch_size: int = 64
    max_epochs: int = 50

    def __post_init__(self) -> None:
        check_positive("protocol.lr", self.lr)
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

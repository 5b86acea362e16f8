"""The probe of `protocol=search`: logistic regression on standardised embeddings, `C` chosen on validation."""

import warnings
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch.nn import functional

from decar.downstream.known import Fitted, Floats, Known, Scorer, Truth, standardiser
from decar.downstream.outcome import score
from decar.downstream.protocol import SearchProtocol

_LEAST = np.finfo(np.float64).eps  # probability given to a class that was not learned


def fit_search(known: Known, protocol: SearchProtocol) -> Fitted:
    """The strength that is best on validation, refitted on train and validation.

    Of equally good ones, and with few validation clips there are several, the one with the lowest log-loss on
    validation; of those that even so are equal to six digits the smallest.
    """
    prepare = preparation(known.x_train)
    x_train, x_valid = prepare(known.x_train), prepare(known.x_valid)
    history: list[dict[str, float | int]] = []
    for strength in sorted(protocol.strengths):
        given = fit(x_train, known.y_train, strength, known.n_classes)(x_valid)
        value, loss = score(given, known.y_valid), round(log_loss(given, known.y_valid), 6)
        history.append({"C": strength, "valid_value": value, "valid_loss": loss})
    best = max(history, key=lambda tried: (tried["valid_value"], -tried["valid_loss"]))  # the first of equals
    x, y = known.everything() if known.refit else (known.x_train, known.y_train)
    prepare_all = preparation(x)
    final = fit(prepare_all(x), y, best["C"], known.n_classes)
    return Fitted(lambda z: final(prepare_all(z)), best["valid_value"], {"C": best["C"]}, history)


def fit(x: Floats, y: Truth, strength: float, n_classes: int) -> Scorer:
    """Fit prepared embeddings; the result gives probabilities `(N, C)`: of classes, or of each label by itself."""
    return _fit_labels(x, y, strength) if y.ndim == 2 else _fit_classes(x, y, strength, n_classes)


def _fit_classes(x: Floats, y: Truth, strength: float, n_classes: int) -> Scorer:
    """Newton's method, since embeddings of few clips are so ill-conditioned that lbfgs stops short of the optimum.

    After 1000 steps it still does, and then rounding decides the score.
    """
    model = LogisticRegression(C=strength, solver="newton-cg", max_iter=100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # at large C separable classes never quite converge
        warnings.filterwarnings("ignore", message="The line search algorithm")
        model.fit(x, y)

    def probabilities(z: Floats) -> Floats:
        given = np.zeros((len(z), n_classes))
        given[:, model.classes_] = model.predict_proba(z)
        return given

    return probabilities


def _fit_labels(x: Floats, y: Truth, strength: float) -> Scorer:
    """One binary logistic regression a label, all of them at once: their optima do not depend on one another."""
    inputs, targets = torch.as_tensor(x, dtype=torch.float64), torch.as_tensor(y, dtype=torch.float64)
    weight = torch.zeros(x.shape[1], y.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(y.shape[1], dtype=torch.float64, requires_grad=True)
    lbfgs = torch.optim.LBFGS(
        [weight, bias], max_iter=500, tolerance_grad=1e-7, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def objective() -> torch.Tensor:
        lbfgs.zero_grad()
        losses = functional.binary_cross_entropy_with_logits(inputs @ weight + bias, targets, reduction="sum")
        total = (losses + 0.5 / strength * weight.square().sum()) / len(inputs)
        total.backward()  # type: ignore[no-untyped-call]
        return total

    lbfgs.step(objective)  # type: ignore[no-untyped-call]
    w, b = weight.detach().numpy(), bias.detach().numpy()
    return lambda z: 1 / (1 + np.exp(-(z @ w + b)))


def log_loss(given: Floats, truth: Truth) -> float:
    """Mean of -ln of the probability given to the truth: of a clip's class, or of each label that it has or has not."""
    right = np.where(truth, given, 1 - given) if truth.ndim == 2 else given[np.arange(len(given)), truth]
    return float(-np.log(np.maximum(right, _LEAST)).mean())


def preparation(x: Floats) -> Callable[[Floats], NDArray[np.float64]]:
    """What standardises embeddings like `x` `(N, D)` and, when `N < D`, expresses them in the span of `x`.

    L2-penalised weights lie in the span of the clips they are fitted to (representer theorem): the classifier is the
    same and its fit several times cheaper.
    """
    mean, scale = standardiser(x)
    if len(x) >= x.shape[1] or not scale.any():
        return lambda z: (z - mean) * scale
    rows = (x - mean) * scale
    squares, sides = np.linalg.eigh(rows @ rows.T)  # several times cheaper than the SVD of the rows themselves
    kept = squares > 1e-12 * squares[-1]
    basis = rows.T @ (sides[:, kept] / np.sqrt(squares[kept]))  # (D, rank), orthonormal
    return lambda z: (z - mean) * scale @ basis

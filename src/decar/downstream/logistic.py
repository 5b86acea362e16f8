"""The probe of `protocol=search`: logistic regression on standardised embeddings, `C` chosen on validation."""

import warnings
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from torch.nn import functional

from decar.downstream.outcome import Fitted, Floats, Known, Scorer, Truth, score
from decar.downstream.protocol import SearchProtocol
from decar.models.vectors import standardiser


def fit_search(known: Known, protocol: SearchProtocol) -> Fitted:
    """Choose the strength on validation and fit it again on train and validation.

    Few validation clips often score several strengths alike. Of those the one with the lowest log-loss on validation is
    taken, and of log-losses that are equal to six digits the smallest strength.
    """
    prepare = preparation(known.x_train)
    x_train, x_valid = prepare(known.x_train), prepare(known.x_valid)
    history: list[dict[str, float | int]] = []
    for strength in sorted(protocol.strengths):
        given = fit(x_train, known.y_train, strength, known.n_classes)(x_valid)
        value, loss = score(given, known.y_valid), round(loss_of(given, known.y_valid), 6)
        history.append({"C": strength, "valid_value": value, "valid_loss": loss})
    best = max(history, key=lambda tried: (tried["valid_value"], -tried["valid_loss"]))  # the first of equals
    x, y = known.final()
    prepare_all = preparation(x)
    final = fit(prepare_all(x), y, best["C"], known.n_classes)
    return Fitted(lambda z: final(prepare_all(z)), best["valid_value"], {"C": best["C"]}, history)


def fit(x: Floats, y: Truth, strength: float, n_classes: int) -> Scorer:
    """Fit prepared embeddings; scores are probabilities `(N, C)` of the classes, or of each label by itself."""
    return _fit_labels(x, y, strength) if y.ndim == 2 else _fit_classes(x, y, strength, n_classes)


def _fit_classes(x: Floats, y: Truth, strength: float, n_classes: int) -> Scorer:
    """Multinomial logistic regression by Newton's method.

    Embeddings of few clips are so ill-conditioned that lbfgs stops short of the optimum even after 1000 steps, and the
    score then depends on rounding.
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


def loss_of(given: Floats, truth: Truth) -> float:
    """Mean log-loss of probabilities `(N, C)`: of a clip's class, or of each label that it has or has not."""
    if truth.ndim == 2:
        return float(log_loss(truth.ravel(), given.ravel(), labels=[False, True]))
    return float(log_loss(truth, given, labels=range(given.shape[1])))


def preparation(x: Floats) -> Callable[[Floats], NDArray[np.float64]]:
    """A function that standardises embeddings by `x` `(N, D)` and, when `N < D`, expresses them in the span of `x`.

    L2-penalised weights lie in the span of the clips they are fitted to (representer theorem): the classifier is the
    same and its fit several times cheaper.
    """
    mean, scale = standardiser([x])
    if len(x) >= x.shape[1] or not scale.any():
        return lambda z: (z - mean) * scale
    rows = (x - mean) * scale
    squares, sides = np.linalg.eigh(rows @ rows.T)  # several times cheaper than the SVD of the rows themselves
    kept = squares > 1e-12 * squares[-1]
    basis = rows.T @ (sides[:, kept] / np.sqrt(squares[kept]))  # (D, rank), orthonormal
    return lambda z: (z - mean) * scale @ basis

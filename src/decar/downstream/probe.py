"""The frozen probe: a linear classifier on embeddings that were computed once, by an encoder in eval mode.

Whatever is chosen is chosen on validation. The functions that fit see no test clip; the test split is read in one
line of `fit_frozen`, after the choice is made. Letters: `N` clips, `D` embedding, `C` classes.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional

from decar.downstream.outcome import Outcome, accuracy, confusion_matrix
from decar.downstream.protocol import PaperProtocol, Protocol, SearchProtocol
from decar.downstream.task import Task
from decar.errors import TaskError

Floats = NDArray[np.float32] | NDArray[np.float64]
Ints = NDArray[np.int64]
Classifier = Callable[[Floats], Ints]


class _Known(NamedTuple):
    """All that fitting and choosing may look at."""

    x_train: Floats
    y_train: Ints
    x_valid: Floats
    y_valid: Ints
    n_classes: int


class _Fitted(NamedTuple):
    classify: Classifier
    valid_accuracy: float
    chosen: dict[str, float | int]
    history: list[dict[str, float | int]]


def fit_frozen(x: Floats, task: Task, protocol: Protocol, seed: int) -> Outcome:
    """Fit and judge a linear classifier on frozen embeddings.

    Args:
        x: `(N, D)` embeddings of the task's clips, in the task's order.
        task: The classes and splits.
        protocol: `PaperProtocol`: Adam on the raw embeddings, best epoch of validation.
            `SearchProtocol`: logistic regression on standardised embeddings, `C` by validation, refit on train + valid.
        seed: Seeds initial weights and order of the paper's probe; the search has nothing random in it.

    Raises:
        TaskError: An embedding is not finite, or the number of rows is not the task's.
    """
    _check_embeddings(x, task)
    train, valid = task.indices("train"), task.indices("valid")
    known = _Known(x[train], task.y[train], x[valid], task.y[valid], len(task.classes))
    fitted = _fit_adam(known, protocol, seed) if isinstance(protocol, PaperProtocol) else _fit_search(known, protocol)
    test = task.indices("test")
    confusion = confusion_matrix(task.y[test], fitted.classify(x[test]), len(task.classes))
    return Outcome(fitted.valid_accuracy, accuracy(confusion), confusion, fitted.chosen, fitted.history)


def _check_embeddings(x: Floats, task: Task) -> None:
    if len(x) != len(task):
        raise TaskError(f"task {task.spec.name}: {len(x)} embeddings for {len(task)} clips; embed the task's own clips")
    bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
    if len(bad):
        path = task.manifest.table["path"].iloc[int(bad[0])]
        raise TaskError(
            f"task {task.spec.name}: {len(bad)} embeddings are not finite, first: {path}; "
            "is the bundle from a run that diverged?"
        )


def _fit_adam(known: _Known, protocol: PaperProtocol, seed: int) -> _Fitted:
    """One linear layer on raw embeddings (paper, section 4: Adam, 1e-3, batch 64, at most 50 epochs)."""
    layer = _linear(known.x_train.shape[1], known.n_classes, seed)
    adam = torch.optim.Adam(layer.parameters(), lr=protocol.lr)
    x, y = torch.as_tensor(known.x_train, dtype=torch.float32), torch.as_tensor(known.y_train)
    best, best_layer, history = -1.0, layer, list[dict[str, float | int]]()
    for epoch in range(protocol.max_epochs):
        loss = 0.0
        for rows in _shuffled(len(x), protocol.batch_size, seed, epoch):
            loss += _step(layer, adam, x[rows], y[rows]) * len(rows) / len(x)
        score = _score(lambda z: _classify(layer, z), known)
        history.append({"epoch": epoch, "train_loss": loss, "valid_accuracy": score})
        if score > best:  # strictly: the first of equally good epochs
            best, best_layer = score, copy.deepcopy(layer)
    chosen = int(np.argmax([h["valid_accuracy"] for h in history])) if history else 0
    return _Fitted(lambda z: _classify(best_layer, z), best, {"lr": protocol.lr, "epoch": chosen}, history)


def _linear(dim: int, n_classes: int, seed: int) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(dim, n_classes)


def _shuffled(n: int, batch_size: int, seed: int, epoch: int) -> Iterator[Tensor]:
    """Batches of row numbers, every row once, a pure function of (seed, epoch)."""
    order = np.random.default_rng([seed, epoch]).permutation(n)
    for start in range(0, n, batch_size):
        yield torch.from_numpy(order[start : start + batch_size])


def _step(layer: nn.Linear, adam: torch.optim.Optimizer, x: Tensor, y: Tensor) -> float:
    loss = functional.cross_entropy(layer(x), y)
    adam.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    adam.step()
    return float(loss.detach())


@torch.no_grad()
def _classify(layer: nn.Linear, x: Floats) -> Ints:
    predicted: Ints = layer(torch.as_tensor(x, dtype=torch.float32)).argmax(1).numpy()
    return predicted


def _fit_search(known: _Known, protocol: SearchProtocol) -> _Fitted:
    """Logistic regression on standardised embeddings; `C` by validation accuracy.

    Of equally good ones, and with few validation clips there are several, the one with the lowest log-loss on
    validation; of those that even so are equal to six digits the smallest.
    """
    prepare = _preparation(known.x_train)
    x_train, x_valid = prepare(known.x_train), prepare(known.x_valid)
    history: list[dict[str, float | int]] = []
    for strength in sorted(protocol.strengths):
        model = _fit_logistic(x_train, known.y_train, strength)
        score = float(np.mean(model.predict(x_valid) == known.y_valid))
        loss = round(_log_loss(model, x_valid, known.y_valid), 6)
        history.append({"C": strength, "valid_accuracy": score, "valid_loss": loss})
    best = max(history, key=lambda tried: (tried["valid_accuracy"], -tried["valid_loss"]))  # the first of equals
    x = np.concatenate([known.x_train, known.x_valid])
    y = np.concatenate([known.y_train, known.y_valid])
    prepare_all = _preparation(x)
    final = _fit_logistic(prepare_all(x), y, best["C"])
    return _Fitted(
        lambda z: np.asarray(final.predict(prepare_all(z)), np.int64), best["valid_accuracy"], {"C": best["C"]}, history
    )


def _fit_logistic(x: Floats, y: Ints, strength: float) -> LogisticRegression:
    """Fit prepared embeddings.

    Newton's method, since embeddings of few clips are so ill-conditioned that lbfgs stops short of the optimum after
    1000 steps, and then rounding decides the score.
    """
    model = LogisticRegression(C=strength, solver="newton-cg", max_iter=100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # at large C separable classes never quite converge
        warnings.filterwarnings("ignore", message="The line search algorithm")
        return model.fit(x, y)


def _log_loss(model: LogisticRegression, x: Floats, y: Ints) -> float:
    """Mean of -ln of the probability given to the true class; a class that was not learned has the smallest one."""
    true = np.where(y[:, None] == model.classes_, model.predict_proba(x), 0.0).sum(axis=1)
    return float(-np.log(np.maximum(true, np.finfo(np.float64).eps)).mean())


def _preparation(x: Floats) -> Callable[[Floats], Floats]:
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


def standardiser(x: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean `(D,)` and factor `(D,)` that make every column of `x` `(N, D)` zero mean and unit variance.

    The factor of a column that does not vary is 0: a dead unit says nothing, and must not explode on other clips.
    """
    wide = x.astype(np.float64)
    mean, std = wide.mean(axis=0), wide.std(axis=0)
    alive = std > 1e-6 * np.maximum(1e-6, np.abs(mean))  # float32 noise around a constant is no variance
    return mean, np.divide(1.0, std, out=np.zeros_like(std), where=alive)


def _score(classify: Classifier, known: _Known) -> float:
    return float(np.mean(classify(known.x_valid) == known.y_valid))

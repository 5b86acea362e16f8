"""The frozen probe: a classifier on embeddings that were computed once, by an encoder in eval mode.

Settings are chosen on validation. The functions that fit never see a test clip; `fit_frozen` reads the test split once,
after the choice. Letters: `N` clips, `D` embedding, `C` classes.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import expit
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn
from torch.nn import functional

from decar.downstream.protocol import (
    Fitted,
    Floats,
    KnnProtocol,
    Known,
    Outcome,
    PaperProtocol,
    Protocol,
    Scorer,
    SearchProtocol,
    Truth,
    measure,
    score,
)
from decar.downstream.task import Task
from decar.errors import TaskError
from decar.models.embed import half_standardiser, standardiser
from decar.models.networks import seeded


def fit_frozen(x: Floats, task: Task, protocol: Protocol, seed: int) -> Outcome:
    """Fit and judge a classifier on frozen embeddings.

    Args:
        x: `(N, D)` embeddings of the task's clips, in the task's order.
        task: The classes and splits.
        protocol: `PaperProtocol`: Adam on the raw embeddings, best epoch of validation, refit if its `refit` is true.
            `SearchProtocol`: logistic regression on standardised embeddings, `C` by validation, refit on train + valid.
            `KnnProtocol`: votes of the nearest clips.
        seed: Seeds initial weights and order of the paper's probe; the others are deterministic.

    Raises:
        TaskError: An embedding is not finite, the number of rows is not the task's, or the paper's layer diverged.
    """
    _check_embeddings(x, task)
    train, valid = task.indices("train"), task.indices("valid")
    known = Known(x[train], task.y[train], x[valid], task.y[valid], len(task.classes), task.spec.shots is None)
    if isinstance(protocol, SearchProtocol):
        fitted = fit_search(known, protocol)
    elif isinstance(protocol, KnnProtocol):
        fitted = fit_knn(known, protocol)
    else:
        fitted = _fit_adam(known, protocol, seed)
    test = task.indices("test")
    metrics, confusion = measure(fitted.scores(x[test]), task.y[test])
    return Outcome(fitted.valid_value, metrics, confusion, fitted.chosen, fitted.history)


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


def _fit_adam(known: Known, protocol: PaperProtocol, seed: int) -> Fitted:
    """One linear layer on raw embeddings (paper, section 4: Adam, 1e-3, batch 64, at most 50 epochs)."""
    best, chosen, history = -1.0, 0, list[dict[str, float | int]]()
    for epoch, (layer, loss) in enumerate(_epochs(known.x_train, known.y_train, known.n_classes, protocol, seed)):
        given = _scores(layer, known.x_valid)
        finite = bool(np.isfinite(given).all())  # the largest of NaNs would be the first class
        value = score(given, known.y_valid) if finite else 0.0
        history.append({"epoch": epoch, "train_loss": loss, "valid_value": value})
        if finite and value > best:  # strictly: the first of equally good epochs
            best, chosen, final = value, epoch, copy.deepcopy(layer)
    if best < 0:
        raise TaskError(f"the linear layer diverged (NaN or Inf); give a smaller learning rate than {protocol.lr:g}")
    if protocol.refit:
        again = _epochs(*known.final(), known.n_classes, protocol, seed)
        final = [layer for layer, _ in islice(again, chosen + 1)][-1]
    return Fitted(lambda z: _scores(final, z), best, {"lr": protocol.lr, "epoch": chosen}, history)


def _epochs(
    x: Floats, y: Truth, n_classes: int, protocol: PaperProtocol, seed: int
) -> Iterator[tuple[nn.Linear, float]]:
    """Train a linear layer; after each epoch the layer, always the same one, and the epoch's mean loss."""
    with seeded(seed):
        layer = nn.Linear(x.shape[1], n_classes)
    adam = torch.optim.Adam(layer.parameters(), lr=protocol.lr)
    inputs, truth = torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(y)
    for epoch in range(protocol.max_epochs):
        loss = 0.0
        for rows in _shuffled(len(x), protocol.batch_size, seed, epoch):
            loss += _step(layer, adam, inputs[rows], truth[rows]) * len(rows) / len(x)
        yield layer, loss


def fit_knn(known: Known, protocol: KnnProtocol) -> Fitted:
    """Choose the number of neighbours on validation, the smallest of equals; then validation clips vote too."""
    history: list[dict[str, float | int]] = []
    for k in sorted(protocol.neighbors):
        value = score(neighbours(known.x_train, known.y_train, k, known.n_classes)(known.x_valid), known.y_valid)
        history.append({"neighbors": k, "valid_value": value})
    best = max(history, key=lambda tried: tried["valid_value"])
    scores = neighbours(*known.final(), int(best["neighbors"]), known.n_classes)
    return Fitted(scores, best["valid_value"], {"neighbors": best["neighbors"]}, history)


def neighbours(x: Floats, y: Truth, k: int, n_classes: int) -> Scorer:
    """The `k` nearest of `x` vote, each with the cosine of half-standardised embeddings, from 0 (opposite) to 1."""
    mean, scale = half_standardiser([x])
    index = NearestNeighbors(n_neighbors=min(k, len(x)), metric="cosine", algorithm="brute").fit((x - mean) * scale)
    votes = sparse.csr_array(y if y.ndim == 2 else np.eye(n_classes, dtype=bool)[y], dtype=np.float64)

    def scores(z: Floats) -> Floats:
        graph = index.kneighbors_graph((z - mean) * scale, mode="distance")  # 1 - cosine
        graph.data = 1 - graph.data / 2
        return np.asarray((graph @ votes).toarray() / index.n_neighbors)

    return scores


def _shuffled(n: int, batch_size: int, seed: int, epoch: int) -> Iterator[Tensor]:
    """Batches of row numbers, every row once, a pure function of (seed, epoch)."""
    order = np.random.default_rng([seed, epoch]).permutation(n)
    for start in range(0, n, batch_size):
        yield torch.from_numpy(order[start : start + batch_size])


def _step(layer: nn.Linear, adam: torch.optim.Optimizer, x: Tensor, y: Tensor) -> float:
    loss = classification_loss(layer(x), y)
    adam.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    adam.step()
    return float(loss.detach())


def classification_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Cross-entropy with a class a clip `(B,)`; with several labels `(B, C)` of each label by itself, the mean."""
    if truth.ndim == 2:
        return functional.binary_cross_entropy_with_logits(logits, truth.to(logits.dtype))
    return functional.cross_entropy(logits, truth)


@torch.no_grad()
def _scores(layer: nn.Linear, x: Floats) -> Floats:
    logits: Floats = layer(torch.as_tensor(x, dtype=torch.float32)).numpy()
    return logits


def fit_search(known: Known, protocol: SearchProtocol) -> Fitted:
    """Choose the strength on validation and fit it again on train and validation.

    Few validation clips often score several strengths alike. Of those the one with the lowest log-loss on validation is
    taken, and of log-losses that are equal to six digits the smallest strength.
    """
    prepare = preparation(known.x_train)
    x_train, x_valid = prepare(known.x_train), prepare(known.x_valid)
    history: list[dict[str, float | int]] = []
    for strength in sorted(protocol.strengths):
        given = fit_logistic(x_train, known.y_train, strength, known.n_classes)(x_valid)
        value, loss = score(given, known.y_valid), round(loss_of(given, known.y_valid), 6)
        history.append({"C": strength, "valid_value": value, "valid_loss": loss})
    best = max(history, key=lambda tried: (tried["valid_value"], -tried["valid_loss"]))  # the first of equals
    x, y = known.final()
    prepare_all = preparation(x)
    final = fit_logistic(prepare_all(x), y, best["C"], known.n_classes)
    return Fitted(lambda z: final(prepare_all(z)), best["valid_value"], {"C": best["C"]}, history)


def fit_logistic(x: Floats, y: Truth, strength: float, n_classes: int) -> Scorer:
    """Fit prepared embeddings; scores are probabilities `(N, C)` of the classes, or of each label by itself."""
    if y.ndim == 1:
        return _fit_classes(x, y, strength, n_classes)
    weight, bias = fit_labels(x, y.astype(bool), strength)
    return lambda z: expit(z @ weight + bias)


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


def fit_labels(
    x: Floats,
    y: NDArray[np.bool_],
    strength: float,
    known: NDArray[np.bool_] | None = None,
    *,
    start: tuple[Floats, Floats] | None = None,
    rough: bool = False,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """One binary logistic regression a label, all of them at once: their optima do not depend on one another.

    Args:
        x: `(N, D)`.
        y: `(N, C)`, which labels a clip has.
        strength: The inverse of the L2 penalty.
        known: `(N, C)`, where `y` is known; None: everywhere. The rest does not count.
        start: Weights and biases to begin with; None: zeros.
        rough: In float32 and to a gradient of 1e-4, not 1e-7: good enough to choose a strength, and ten times faster
            (4,034 clips of 3,072 numbers, 19 labels: 5 s instead of 58).

    Returns:
        Weights `(D, C)` and biases `(C,)` of the logit.
    """
    kind, tolerance = (torch.float32, 1e-4) if rough else (torch.float64, 1e-7)
    inputs, targets = torch.as_tensor(x, dtype=kind), torch.as_tensor(y, dtype=kind)
    counts = None if known is None else torch.as_tensor(known, dtype=kind)
    weight, bias = (
        torch.zeros(shape, dtype=kind) if start is None else torch.tensor(start[i], dtype=kind)
        for i, shape in enumerate([(x.shape[1], y.shape[1]), (y.shape[1],)])
    )
    weight.requires_grad_()
    bias.requires_grad_()
    lbfgs = torch.optim.LBFGS(
        [weight, bias], max_iter=500, tolerance_grad=tolerance, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def objective() -> torch.Tensor:
        lbfgs.zero_grad()
        losses = functional.binary_cross_entropy_with_logits(
            inputs @ weight + bias, targets, weight=counts, reduction="sum"
        )
        total = (losses + 0.5 / strength * weight.square().sum()) / len(inputs)
        total.backward()  # type: ignore[no-untyped-call]
        return total

    lbfgs.step(objective)  # type: ignore[no-untyped-call]
    return weight.detach().double().numpy(), bias.detach().double().numpy()


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

"""The frozen probe: a classifier on embeddings that were computed once, by an encoder in eval mode.

Settings are chosen on validation. The functions that fit never see a test clip; `fit_frozen` reads the test split once,
after the choice. Letters: `N` clips, `D` embedding, `C` classes.
"""

import copy
from collections.abc import Iterator

import numpy as np
import torch
from scipy import sparse
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn
from torch.nn import functional

from decar.downstream.logistic import fit_search
from decar.downstream.outcome import Fitted, Floats, Known, Outcome, Scorer, Truth, measure, score
from decar.downstream.protocol import KnnProtocol, PaperProtocol, Protocol, SearchProtocol
from decar.downstream.task import Task
from decar.errors import TaskError
from decar.models.vectors import standardiser


def fit_frozen(x: Floats, task: Task, protocol: Protocol, seed: int) -> Outcome:
    """Fit and judge a classifier on frozen embeddings.

    Args:
        x: `(N, D)` embeddings of the task's clips, in the task's order.
        task: The classes and splits.
        protocol: `PaperProtocol`: Adam on the raw embeddings, best epoch of validation.
            `SearchProtocol`: logistic regression on standardised embeddings, `C` by validation, refit on train + valid.
            `KnnProtocol`: votes of the nearest clips.
        seed: Seeds initial weights and order of the paper's probe; the others are deterministic.

    Raises:
        TaskError: An embedding is not finite, or the number of rows is not the task's.
    """
    _check_embeddings(x, task)
    train, valid = task.indices("train"), task.indices("valid")
    known = Known(x[train], task.y[train], x[valid], task.y[valid], len(task.classes), task.spec.shots is None)
    fitted = _fit(known, protocol, seed)
    test = task.indices("test")
    metrics, confusion = measure(fitted.scores(x[test]), task.y[test])
    return Outcome(fitted.valid_value, metrics, confusion, fitted.chosen, fitted.history)


def _fit(known: Known, protocol: Protocol, seed: int) -> Fitted:
    if isinstance(protocol, SearchProtocol):
        return fit_search(known, protocol)
    return fit_knn(known, protocol) if isinstance(protocol, KnnProtocol) else _fit_adam(known, protocol, seed)


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
    layer = _linear(known.x_train.shape[1], known.n_classes, seed)
    adam = torch.optim.Adam(layer.parameters(), lr=protocol.lr)
    x, y = torch.as_tensor(known.x_train, dtype=torch.float32), torch.as_tensor(known.y_train)
    best, best_layer, history = -1.0, layer, list[dict[str, float | int]]()
    for epoch in range(protocol.max_epochs):
        loss = 0.0
        for rows in _shuffled(len(x), protocol.batch_size, seed, epoch):
            loss += _step(layer, adam, x[rows], y[rows]) * len(rows) / len(x)
        value = score(_scores(layer, known.x_valid), known.y_valid)
        history.append({"epoch": epoch, "train_loss": loss, "valid_value": value})
        if value > best:  # strictly: the first of equally good epochs
            best, best_layer = value, copy.deepcopy(layer)
    chosen = int(np.argmax([h["valid_value"] for h in history])) if history else 0
    return Fitted(lambda z: _scores(best_layer, z), best, {"lr": protocol.lr, "epoch": chosen}, history)


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
    """The `k` nearest of `x` vote, each with the cosine of standardised embeddings, from 0 (opposite) to 1."""
    mean, scale = standardiser([x])
    index = NearestNeighbors(n_neighbors=min(k, len(x)), metric="cosine", algorithm="brute").fit((x - mean) * scale)
    votes = sparse.csr_array(y if y.ndim == 2 else np.eye(n_classes, dtype=bool)[y], dtype=np.float64)

    def scores(z: Floats) -> Floats:
        graph = index.kneighbors_graph((z - mean) * scale, mode="distance")  # 1 - cosine
        graph.data = 1 - graph.data / 2
        return np.asarray((graph @ votes).toarray() / index.n_neighbors)

    return scores


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

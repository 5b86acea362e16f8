"""The probe of `protocol=knn`: nothing is trained, the nearest clips vote. `N` clips, `D` embedding, `C` classes."""

import numpy as np

from decar.downstream.known import Fitted, Floats, Known, Scorer, Truth, standardiser
from decar.downstream.outcome import score
from decar.downstream.protocol import KnnProtocol

_ROWS = 2048  # clips compared at once


def fit_knn(known: Known, protocol: KnnProtocol) -> Fitted:
    """The number of neighbours that is best on validation, the smallest of equals; then validation clips vote too."""
    history: list[dict[str, float | int]] = []
    for k in sorted(protocol.neighbors):
        value = score(neighbours(known.x_train, known.y_train, k, known.n_classes)(known.x_valid), known.y_valid)
        history.append({"neighbors": k, "valid_value": value})
    best = max(history, key=lambda tried: tried["valid_value"])
    x, y = known.everything() if known.refit else (known.x_train, known.y_train)
    return Fitted(
        neighbours(x, y, int(best["neighbors"]), known.n_classes), best["valid_value"],
        {"neighbors": best["neighbors"]}, history,
    )  # fmt: skip


def neighbours(x: Floats, y: Truth, k: int, n_classes: int) -> Scorer:
    """The `k` nearest of `x` vote, each with the cosine of standardised embeddings, from 0 (opposite) to 1."""
    mean, scale = standardiser(x)
    unit = _unit((x - mean) * scale)
    votes = y.astype(np.float64) if y.ndim == 2 else np.eye(n_classes)[y]
    k = min(k, len(x))

    def scores(z: Floats) -> Floats:
        found = np.zeros((len(z), n_classes))
        for start in range(0, len(z), _ROWS):
            cosine = _unit((z[start : start + _ROWS] - mean) * scale) @ unit.T
            nearest = np.argsort(-cosine, axis=1, kind="stable")[:, :k]  # of equally near ones the first
            weight = (1 + np.take_along_axis(cosine, nearest, 1)) / 2
            found[start : start + _ROWS] = np.einsum("nk,nkc->nc", weight, votes[nearest]) / k
        return found

    return scores


def _unit(x: Floats) -> Floats:
    lengths = np.linalg.norm(x, axis=1, keepdims=True).astype(np.float64)
    return np.asarray(x / np.maximum(lengths, np.finfo(np.float64).tiny), np.float64)

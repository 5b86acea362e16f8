"""Does the embedding improve? Measured before training and after every epoch, on a sample of the clips.

NMI and loss show how well clusters are learned, not whether they are worth learning. A nearest-neighbour probe shows
that, where a column of labels is known. Pre-training does not use labels anywhere else, except in `OnlineProbe`.
"""

import hashlib
import logging
import math
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pytorch_lightning import Callback, LightningModule, Trainer
from sklearn.neighbors import NearestNeighbors

from decar.audio import Manifest
from decar.clustering.base import row_blocks
from decar.clustering.stats import effective_rank, entropy
from decar.errors import ConfigError, TrainingError
from decar.models.embed import half_standardiser
from decar.pretrain.module import DecarModule
from decar.pretrain.ranks import on_rank_zero
from decar.pretrain.sampler import Stream, derive_seed
from decar.pretrain.vectors import Floats, Rows

log = logging.getLogger(__name__)

_ROWS_AT_ONCE = 1024
Watched = dict[str, str]  # label, digest of the sample and its classes


class EmbeddingHealth(Callback):
    """Log `embedding_rank`, and `probe_accuracy` where a label is known; warn when that is worse than at step 0.

    Args:
        label: Column of the manifest that the probe looks at; None: only the effective rank. An empty cell is no label.
            There is no probe for fewer than two classes. The nearest clip is one of another file.
        max_clips: The sample, drawn once by the run's seed: labelled clips first.
        low_entropy: Of any clustering's pseudo-labels, 1 being even: below, most clips are in one cluster. Healthy:
            .7 to 1.
        low_rank: Share of the untrained embedding's effective rank: below, it has collapsed. Healthy runs rise.
    """

    def __init__(
        self, label: str | None = None, max_clips: int = 1000, low_entropy: float = 0.3, low_rank: float = 0.1
    ) -> None:
        self.label, self.max_clips, self.low_entropy, self.low_rank = label, max_clips, low_entropy, low_rank
        self.start: dict[str, float] = {}
        self.probed = 0  # labelled clips of the sample
        self._warned, self._alarmed = False, False
        self._of: Watched | None = None  # what the figures so far are of

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the untrained embedding; a resumed run knows it from its checkpoint, if it is of the same labels."""
        of = self._watched(pl_module)
        if self._of is not None and self._of["digest"] != of["digest"]:
            self.start.pop("probe_accuracy", None)
            if self.label is not None and trainer.is_global_zero:
                log.warning("data.label=%s: earlier figures of this run are of other clips or labels", self.label)
        self._of = of
        if not self.start and trainer.global_step == 0:
            self.start = self.measure(trainer, pl_module)
            if trainer.is_global_zero:
                figures = ", ".join(f"{name} {value:.3g}" for name, value in self.start.items())
                log.info("embedding before training: %s", figures)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse another label for a run that trained no epoch: its figures would be taken for those of this label.

        Raises:
            TrainingError: It is such a run.
        """
        of, before = self._watched(pl_module), self._of
        if self.label is None or before is None or of["label"] == before["label"] or of["digest"] == before["digest"]:
            return
        raise TrainingError(
            f"data.label={self.label}: this run is complete, with figures of label {before['label'] or None}, and "
            "trains no epoch in which to measure another: give that label, judge the encoder with eval.py, or train on "
            "with more trainer.max_epochs"
        )

    def _watched(self, module: LightningModule) -> Watched:
        """What is measured now."""
        assert isinstance(module, DecarModule)
        digest = hashlib.sha256(
            b"".join(part.tobytes() for part in self._sample(module.data.store.manifest, module.seed))
        )
        return {"label": self.label or "", "digest": digest.hexdigest()}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, log, and warn."""
        now = self.measure(trainer, pl_module)
        for name, value in now.items():
            pl_module.log(name, value, batch_size=1)
        self._look_for_collapse(pl_module, now.get("embedding_rank", math.inf))
        accuracy, before = now.get("probe_accuracy", 1.0), self.start.get("probe_accuracy", 0.0)
        if self._warned or not is_worse(accuracy, before, self.probed):
            return
        self._warned = True
        if trainer.is_global_zero:
            log.warning(
                "the embedding tells %s apart worse than before training (%.3f, untrained %.3f): labels of noise or "
                "too few steps between clusterings; try labels=both, a larger sampler.every_n_steps or a smaller k",
                self.label, accuracy, before,
            )  # fmt: skip

    def _look_for_collapse(self, module: LightningModule, rank: float) -> None:
        """Warn once when clusters or embedding have collapsed: further training does not repair that."""
        assert isinstance(module, DecarModule)
        assert module.data.labels is not None
        labels, before = module.data.labels, self.start.get("embedding_rank", 0.0)
        found = [entropy(column, k) for column, k in zip(labels.labels.T, labels.sizes, strict=False)]
        evenness = min(found if labels.sample is None else [*found, labels.health["entropy"]])
        signs = []
        if evenness < self.low_entropy:
            signs.append(f"most clips are in one cluster (entropy {evenness:.2f} of 1)")
        if rank < self.low_rank * before:
            signs.append(
                f"the embedding uses hardly any of its directions (effective rank {rank:.1f}, untrained {before:.1f})"
            )
        if self._alarmed or not signs:
            return
        self._alarmed = True
        if module.trainer.is_global_zero:
            log.warning(
                "collapse: %s; stop, and try labels=both or descriptors, a lower optimizer.lr, or clusterer=kmeans",
                " and ".join(signs),
            )

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        """Effective rank and probe accuracy of the encoder as it stands. Collective."""
        assert isinstance(pl_module, DecarModule)
        store = pl_module.data.store
        sample, classes = self._sample(store.manifest, pl_module.seed)
        self.probed = int((classes >= 0).sum())
        files = pd.factorize(store.manifest.table["path"].iloc[sample])[0]
        z = pl_module.embed_store(store.take(sample), "health: embedding a sample")
        return on_rank_zero(lambda: _figures(z, classes, files))

    def _sample(self, manifest: Manifest, seed: int) -> tuple[Rows, Rows]:
        """Rows of the sample, and the class of each; -1 where it has no label."""
        if self.label is not None and self.label not in manifest.table:
            there = ", ".join(map(str, manifest.table))
            raise ConfigError(f"data.label={self.label}: no such column; there are {there}")
        words = pd.Series([""] * len(manifest)) if self.label is None else manifest.table[self.label]
        classes = pd.factorize(words.where(words.notna() & (words.astype(str).str.strip() != "")))[0]
        rng = np.random.default_rng(derive_seed(Stream.HEALTH, seed))
        order = [rng.permutation(np.flatnonzero(part)) for part in (classes >= 0, classes < 0)]
        sample = np.sort(np.concatenate(order)[: self.max_clips])
        return sample, classes[sample]

    def state_dict(self) -> dict[str, Any]:
        """Figures of the untrained embedding, what they are of, and which warnings were given."""
        return {"start": dict(self.start), "warned": self._warned, "alarmed": self._alarmed, "of": self._of}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them."""
        self.start, self._warned = dict(state_dict["start"]), bool(state_dict["warned"])
        self._alarmed, self._of = bool(state_dict.get("alarmed", False)), state_dict.get("of")


def _figures(z: Floats, classes: Rows, files: Rows) -> dict[str, float]:
    """The figures of embeddings `(n, D)` whose classes are `(n,)`, -1 where unknown, and whose files are `(n,)`.

    No accuracy where files have several clips and no class is in two files: none can be found again.
    """
    found, known = {"embedding_rank": effective_rank(z)}, classes >= 0
    pairs = pd.DataFrame({"class": classes[known], "file": files[known]})
    again = not pairs["file"].duplicated().any() or pairs.drop_duplicates()["class"].duplicated().any()
    if pairs["class"].nunique() > 1 and again:
        found["probe_accuracy"] = nearest_neighbour_accuracy(z[known], classes[known], files[known])
    return found


def is_worse(accuracy: float, before: float, n_clips: int) -> bool:
    """Whether an accuracy over `n_clips` has fallen by more than two standard errors of the difference of two such."""
    pooled = (accuracy + before) / 2
    return before - accuracy > 2 * math.sqrt(2 * pooled * (1 - pooled) / max(1, n_clips))


def nearest_neighbour_accuracy(vectors: Floats, labels: Rows, files: Rows | None = None) -> float:
    """Share of clips whose nearest clip of another file has the same label; cosine of half-standardised vectors.

    Segments of one recording are near each other, and have one label, whatever the embedding knows of it.

    Args:
        vectors: `(N, D)`.
        labels: `(N,)`.
        files: `(N,)`, the file of each clip; None: each has its own.

    Returns:
        0 to 1; 0.0 for fewer than two files.
    """
    if len(vectors) < 2 or (files is not None and len(np.unique(files)) < 2):
        return 0.0
    mean, scale = half_standardiser([vectors])
    return float(np.mean(labels[_nearest((vectors - mean) * scale, files)] == labels))


def _nearest(points: NDArray[np.float64], files: Rows | None) -> Rows:
    """The nearest other point of each by cosine, or the nearest one of another file: `(N,)`."""
    if files is None or len(np.unique(files)) == len(files):
        index = NearestNeighbors(n_neighbors=1, metric="cosine", algorithm="brute").fit(points)
        found: Rows = index.kneighbors(return_distance=False)[:, 0]  # of the others
        return found
    unit, nearest = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-30), np.empty_like(files)
    for rows in row_blocks(len(unit), _ROWS_AT_ONCE):
        cosine = unit[rows] @ unit.T
        cosine[files[rows, None] == files] = -np.inf
        nearest[rows] = cosine.argmax(axis=1)
    return nearest

"""Does NMI mean progress? A labelled set that is probed every few epochs while the encoder learns from other sounds.

The labels do not influence training.
"""

import hashlib
import logging
import os
import warnings
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import Callback, LightningModule, Trainer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from decar.audio import FrontEnd, LogMelStore, Manifest
from decar.audio.groups import AUTO, together
from decar.audio.scan import SPLIT_NAMES
from decar.audio.store import DEFAULT_CACHE
from decar.errors import ConfigError, TrainingError, check_positive, check_whole
from decar.models.embed import half_standardiser
from decar.pretrain.health import EmbeddingHealth, Watched
from decar.pretrain.module import DecarModule
from decar.pretrain.ranks import on_rank_zero, rank_zero_first
from decar.pretrain.sampler import Stream, derive_seed
from decar.pretrain.vectors import Floats, Rows

log = logging.getLogger(__name__)

Kind = Literal["knn", "linear"]

_FOLDS = 4  # where there is no split a quarter is held out


class OnlineProbe(Callback):
    """Log `probe_accuracy` of a labelled table or folder: fitted to its train part, measured on its validation part.

    It replaces the probe of `EmbeddingHealth` on the training clips. The log also has the untrained embedding's.

    Args:
        path: `.csv`, `.tsv`, `.parquet`, or a folder with a folder per class; None: no probe.
        label: Its column of classes; clips without one are left out.
        root: Where relative paths of a table start from; None: its folder.
        path_column: Its column of paths.
        split: Its column with `train` and `valid`, where it has one; other rows, as `test`, are not looked at. None or
            not there: a quarter is held out, whole groups at a time.
        group: Column whose values are not divided over both parts; "auto": those called speaker, recording, location
            and the like, where they leave something to hold out; None: clips of one file.
        kind: `knn`, on half-standardised embeddings, or `linear`: logistic regression, on standardised ones.
        every_n_epochs: How often; after the last epoch too.
        neighbours: That vote, of `knn`.
        strength: `C` of the logistic regression.
        max_clips: At most so many, drawn by the run's seed.
        cache_dir: Where its log-mels are kept.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        label: str = "label",
        *,
        root: str | None = None,
        path_column: str = "path",
        split: str | None = "split",
        group: str | None = AUTO,
        kind: Kind = "knn",
        every_n_epochs: int = 5,
        neighbours: int = 10,
        strength: float = 0.01,
        max_clips: int = 5000,
        cache_dir: str | os.PathLike[str] = DEFAULT_CACHE,
    ) -> None:
        if kind not in get_args(Kind):
            raise ConfigError(f"callbacks.probe.kind={kind}: choose one of {', '.join(get_args(Kind))}")
        for name, value in (("every_n_epochs", every_n_epochs), ("neighbours", neighbours), ("max_clips", max_clips)):
            check_whole(f"callbacks.probe.{name}", value, 1)
        check_positive("callbacks.probe.strength", strength)
        self.path, self.label, self.root, self.path_column = path, label, root, path_column
        self.split, self.group, self.kind, self.every_n_epochs = split, group, kind, every_n_epochs
        self.neighbours, self.strength, self.max_clips, self.cache_dir = neighbours, strength, max_clips, cache_dir
        self.found: dict[int, float] = {}  # accuracy by number of epochs trained, 0 of the untrained
        self._store: LogMelStore | None = None
        self._of: Watched | None = None  # what is measured
        self._before: Watched | None = None  # what the figures of the checkpoint are of

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compute its log-mels before training begins, so that an unusable table is reported at once."""
        if self.path is None or self._store is not None:
            return
        assert isinstance(pl_module, DecarModule)
        with rank_zero_first():
            self._store = self._open(pl_module.encoder.frontend)
        labels = self._store.manifest.column(self.label).to_numpy(str)
        rng = np.random.default_rng(derive_seed(Stream.HEALTH, pl_module.seed, 1))
        self._store = self._store.take(np.sort(rng.permutation(np.flatnonzero(labels != ""))[: self.max_clips]))
        self._classes = np.unique(self._column(self.label), return_inverse=True)[1]
        self._train, self._valid = self._parts(derive_seed(Stream.HEALTH, pl_module.seed, 2) % 2**31)
        self._of = self._watched(self._store)
        for other in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(other, EmbeddingHealth):
                other.label = None  # one probe_accuracy a run
        if trainer.is_global_zero:
            chance = np.bincount(self._classes[self._valid]).max() / len(self._valid)
            log.info(
                "probe: %d clips to fit, %d to judge, %d classes (the commonest alone: %.3f)", len(self._train),
                len(self._valid), len(set(self._classes)), chance,
            )  # fmt: skip

    def _watched(self, store: LogMelStore) -> Watched:
        how = f"{self.kind} {self.neighbours} {self.strength}"
        parts = (self._classes, self._train, self._valid)
        digest = hashlib.sha256(f"{store.content} {how}".encode() + b"".join(part.tobytes() for part in parts))
        asked = f"{self.path} {self.label} {self.split} {self.group} {self.max_clips} {how}"
        return {"asked": asked, "digest": digest.hexdigest()}

    def _changed(self) -> bool:
        """Whether the figures of the checkpoint are of other clips or labels, or were measured otherwise."""
        return bool(self._before and self._of and self._before["digest"] != self._of["digest"])

    def _open(self, frontend: FrontEnd) -> LogMelStore:
        assert self.path is not None
        path = Path(self.path).expanduser()
        manifest = Manifest.from_path(path, root=self.root, path_column=self.path_column)
        group = None if self.group == AUTO else self.group
        split = None if self.split == "split" else self.split  # the default may be missing, what is asked for may not
        for option, column in (("label", self.label), ("group", group), ("split", split)):
            if column is not None and column not in manifest.table:
                there = ", ".join(map(str, manifest.table))
                raise ConfigError(f"callbacks.probe.{option}={column}: {path} has no such column; there are {there}")
        return LogMelStore.open_or_build(manifest, frontend, self.cache_dir).usable()

    def _column(self, name: str) -> NDArray[np.str_]:
        assert self._store is not None
        return self._store.manifest.column(name).to_numpy(str)

    def _parts(self, seed: int) -> tuple[Rows, Rows]:
        """Rows to fit and rows to judge: as the table says, else drawn so that no group is in both."""
        assert self._store is not None
        if self.split is not None and self.split in self._store.manifest.table:
            words = [SPLIT_NAMES.get(word.lower()) for word in self._column(self.split).tolist()]
            train, valid = (np.flatnonzero(np.asarray(words) == name) for name in ("train", "valid"))
            what = f"column '{self.split}' has {len(train)} labelled clips in train and {len(valid)} in valid"
        else:
            train, valid = self._drawn(seed)
            what = "too few groups to hold some out: give a column callbacks.probe.split with train and valid"
        if not len(valid) or len(set(self._classes[train])) < 2:
            raise ConfigError(f"callbacks.probe.path={self.path}: {what}; two classes in train are needed, and a valid")
        return train, valid

    def _drawn(self, seed: int) -> tuple[Rows, Rows]:
        nothing = np.empty(0, np.int64)
        folds = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=seed)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of rare classes
                assert self._store is not None
                table = self._store.manifest.table
                groups, used, _ = together(table, self._column(self.label), self.group, label=self.label)
                log.info("probe: a quarter is held out, no %s is in both parts", ", ".join(["file", *used]))
                train, valid = next(folds.split(self._classes, self._classes, groups))
        except ValueError:  # fewer groups than folds
            return nothing, nothing
        return train, valid

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Probe the untrained embedding; a resumed run has the figure in its checkpoint, if it is of the same clips."""
        if self._changed():
            self.found = {}
            if trainer.is_global_zero:
                log.warning(
                    "callbacks.probe.path=%s: earlier figures of this run are of other clips or labels", self.path
                )
        self._before = None
        if self._store is not None and 0 not in self.found and trainer.global_step == 0:
            self.found[0] = self.measure(trainer, pl_module)
            if trainer.is_global_zero:
                log.info("probe before training: %.3f", self.found[0])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Probe at intervals."""
        done = trainer.current_epoch + 1
        if self._store is None or (done % self.every_n_epochs and done != trainer.max_epochs):
            return
        self.found[done] = self.measure(trainer, pl_module)
        pl_module.log("probe_accuracy", self.found[done], batch_size=1)
        self._tell(trainer, done)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Probe where training ended before `max_epochs`."""
        done = trainer.current_epoch
        if self._store is None or done in self.found:
            return
        self.found[done] = self.measure(trainer, pl_module)
        for logger in trainer.loggers:
            row = {"probe_accuracy": self.found[done], "epoch": done - 1}
            logger.log_metrics(row, step=trainer.global_step - 1)
        self._tell(trainer, done)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the last figure to the trainer, which does not know what was measured after the last epoch.

        Raises:
            TrainingError: The run trained no epoch, and its figures are those of another probe.
        """
        if self._store is None:
            return
        done, before, of = trainer.current_epoch, self._before, self._of
        other = self._changed() and before is not None and of is not None and before["asked"] != of["asked"]
        if done not in self.found or other:
            raise TrainingError(
                f"callbacks.probe.path={self.path}: this run is complete, its figures are not of this probe, and it "
                "trains no epoch in which to measure: give the probe it had, judge the encoder with eval.py, or train "
                "on with more trainer.max_epochs"
            )
        trainer.callback_metrics["probe_accuracy"] = torch.tensor(self.found[done])

    def _tell(self, trainer: Trainer, done: int) -> None:
        if trainer.is_global_zero:
            untrained = f" (untrained {self.found[0]:.3f})" if 0 in self.found else ""
            log.info("probe after epoch %d: %.3f%s", done, self.found[done], untrained)

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> float:
        """Accuracy of the encoder as it stands. Collective; rank 0 fits."""
        assert isinstance(pl_module, DecarModule)
        assert self._store is not None
        z = pl_module.embed_store(self._store, "probe: embedding its clips")
        return on_rank_zero(lambda: self.accuracy(z))

    def accuracy(self, vectors: Floats) -> float:
        """Accuracy on the validation part, from the embeddings `(N, D)` of all clips."""
        assert self._store is not None
        bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(bad):
            raise TrainingError(f"the embedding of {self._store.named(bad)} holds NaN or Inf: lower optimizer.lr")
        train, valid, y = self._train, self._valid, self._classes
        if self.kind == "knn":
            mean, scale = half_standardiser([vectors[train]])
            vectors = ((vectors - mean) * scale).astype(vectors.dtype)
            model: Any = KNeighborsClassifier(min(self.neighbours, len(train)), metric="cosine")
        else:
            model = make_pipeline(StandardScaler(), LogisticRegression(C=self.strength, max_iter=300))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # near enough to the optimum for a look
            fitted = model.fit(vectors[train], y[train])
        return float(np.mean(fitted.predict(vectors[valid]) == y[valid]))

    def state_dict(self) -> dict[str, Any]:
        """Accuracies so far, and what they are of."""
        return {"found": dict(self.found), "of": self._of or self._before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them."""
        self.found = {int(done): float(value) for done, value in state_dict["found"].items()}
        self._before = state_dict.get("of")

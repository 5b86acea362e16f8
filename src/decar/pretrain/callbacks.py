"""What a pre-training run leaves behind: the encoder bundle, the cluster of every clip, a line an epoch."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import EarlyStopping, RichProgressBar
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason

from decar.digests import read_parquet, unreadable, write_parquet
from decar.errors import check_whole
from decar.files import whole
from decar.models import read_facts, save_bundle
from decar.models.components import MOST_CLIPS, principal_directions
from decar.pretrain.checkpoint import epoch_is_whole, is_finished
from decar.pretrain.module import DecarModule
from decar.pretrain.ranks import on_rank_zero
from decar.pretrain.wandb_logger import ResumableWandbLogger

log = logging.getLogger(__name__)


class BundleExport(Callback):
    """Write the encoder as a bundle after every epoch; the file is always whole.

    Args:
        path: Where to.
        facts: Free facts that go into the bundle's header, beside clips, epoch and step.
        dim: Principal directions of the clips' embeddings that the bundle of a finished run has, for embeddings of
            fewer numbers; None: none. They cost one more pass over the clips.
    """

    def __init__(self, path: str | Path, facts: Mapping[str, object] | None = None, *, dim: int | None = None) -> None:
        if dim is not None:
            check_whole("callbacks.bundle.dim", dim, 1)
        self.path, self.facts, self.dim = Path(path), dict(facts or {}), dim

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export the weights as they stand."""
        assert isinstance(pl_module, DecarModule)
        data = pl_module.data
        if not trainer.is_global_zero or data.labels is None:
            return
        facts = {**self.facts, "clips": data.n_clips, "epoch": data.labels.epoch, "step": trainer.global_step}
        save_bundle(pl_module.encoder, self.path, facts)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export anew what is gone, damaged or of another step: a run that is complete already trains no epoch."""
        if unreadable(self.path, read_facts) or read_facts(self.path).get("step") != trainer.global_step:
            self.on_train_epoch_end(trainer, pl_module)
        if self.dim and is_finished(trainer):
            assert isinstance(pl_module, DecarModule)
            wanted = min(self.dim, MOST_CLIPS, len(pl_module.data.store), pl_module.encoder.dim)
            if on_rank_zero(lambda: read_facts(self.path).get("directions")) != wanted:
                self._add_directions(pl_module, self.dim)
        self._publish(trainer)

    def _publish(self, trainer: Trainer, suffix: str = "") -> None:
        """Make the bundle of a finished run an artifact of wandb, where that is asked for."""
        for logger in trainer.loggers if is_finished(trainer) else ():
            if isinstance(logger, ResumableWandbLogger) and logger.log_model and self.path.is_file():
                logger.log_bundle(self.path, suffix)

    def _add_directions(self, pl_module: LightningModule, dim: int) -> None:
        """Write the bundle anew, with principal directions of the embeddings of its clips. Collective."""
        assert isinstance(pl_module, DecarModule)
        store, began = pl_module.data.store, time.monotonic()
        some = np.unique(np.linspace(0, len(store) - 1, min(len(store), MOST_CLIPS)).astype(np.int64))
        vectors = pl_module.embed_store(store.take(some), "principal directions")
        if not len(vectors):  # another rank
            return
        directions = principal_directions(vectors, dim)
        facts = {**read_facts(self.path), "directions": len(directions)}
        save_bundle(pl_module.encoder, self.path, facts, directions=directions)
        log.info("%d principal directions of %d clips, in %.0f s", len(directions), len(some), time.monotonic() - began)


class BestBundle(BundleExport):
    """Write the encoder as a bundle after each epoch whose NMI is the highest so far: `bundle=RUN/best`.

    The paper stops on the NMI and does not say which epoch's encoder it judges; `RUN` itself is the last one. Epochs
    without an NMI do not count (`StopOnNMI`), nor do those that training leaves unfinished.
    """

    def __init__(self, path: str | Path, facts: Mapping[str, object] | None = None) -> None:
        super().__init__(path, facts)
        self.best = -1.0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare, and export the weights as they stand."""
        assert isinstance(pl_module, DecarModule)
        labels = pl_module.data.labels
        nmi = labels.health.get("nmi", -1.0) if labels is not None else -1.0
        if nmi > self.best and epoch_is_whole(trainer):  # strictly, as best.ckpt: the first of equals
            self.best = nmi
            super().on_train_epoch_end(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log that a bundle of an earlier epoch is gone: no checkpoint that is loaded here holds its weights."""
        if self.best >= 0 and trainer.is_global_zero and (reason := unreadable(self.path, read_facts)):
            log.warning("%s: %s; best.ckpt has its weights", self.path, reason)
        else:
            self._publish(trainer, "-best")

    def state_dict(self) -> dict[str, Any]:
        """The highest NMI, and where the bundle lies."""
        return {"best": self.best, "path": str(self.path)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from there; in another folder without the bundle, the best of the epochs to come is kept."""
        here = self.path.is_file() or state_dict.get("path", str(self.path)) == str(self.path)
        self.best = float(state_dict["best"]) if here else -1.0


class ClusterLog(Callback):
    """Write `clusters.parquet`: a row for each clip, epoch and clustering, with its pseudo-label.

    The table is a folder with a part an epoch, so that a long run never rewrites what it has; pandas and pyarrow read
    it as one.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the part of this epoch."""
        assert isinstance(pl_module, DecarModule)
        data = pl_module.data
        if not trainer.is_global_zero or data.labels is None:
            return
        table, epoch = data.store.manifest.table, data.labels.epoch
        stretch = {name: table[name] for name in ("start", "duration") if name in table}  # tell clips of one file apart
        key = pd.DataFrame({"clip": table["path"], **stretch, "epoch": epoch})
        parts = [key.assign(clustering=h, pseudo_label=column) for h, column in enumerate(data.labels.labels.T)]
        if (sample := data.labels.sample) is not None:
            parts.append(key.iloc[sample[:, 0]].assign(clustering=len(parts), pseudo_label=sample[:, 1]))
        with whole(part_of(self.path, epoch)) as part:  # readers of the folder pass over dot files
            write_parquet(part, pd.concat(parts, ignore_index=True))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Delete what an earlier call has written of later epochs, from whose checkpoints this one does not go on."""
        self._forget_after(trainer, trainer.current_epoch)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the part of the last epoch anew where it is gone or damaged, as `BundleExport` does."""
        assert isinstance(pl_module, DecarModule)
        labels = pl_module.data.labels
        if labels is None:
            return
        self._forget_after(trainer, labels.epoch)
        if unreadable(part_of(self.path, labels.epoch), read_parquet):
            self.on_train_epoch_end(trainer, pl_module)

    def _forget_after(self, trainer: Trainer, epoch: int) -> None:
        for file in self.path.glob("epoch_*.parquet") if trainer.is_global_zero else ():
            if file.name > part_of(self.path, epoch).name:
                file.unlink()


def part_of(clusters: Path, epoch: int) -> Path:
    """The file of an epoch in `clusters.parquet`."""
    return clusters / f"epoch_{epoch:05d}.parquet"


class StopOnNMI(EarlyStopping):
    """End when the NMI between consecutive assignments has not improved for `patience` epochs (paper, section 4).

    Epochs without an NMI do not count: the first one, and those whose labels were kept from the epoch before.

    Args:
        patience: Epochs; after a resume the one that was asked for now counts, not the checkpoint's.
    """

    def __init__(self, patience: int = 10) -> None:
        super().__init__("nmi", mode="max", patience=patience, check_on_train_epoch_end=True)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take best value and waiting time of a checkpoint; whether it stops is decided anew."""
        super().load_state_dict({**state_dict, "patience": self.patience})
        self.stopped_epoch, self.stopping_reason = 0, EarlyStoppingReason.NOT_STOPPED

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Train no further when the checkpoint is of the epoch after which this had stopped."""
        if self.wait_count >= self.patience:
            trainer.should_stop, self.stopping_reason = True, EarlyStoppingReason.PATIENCE_EXHAUSTED
            self.stopped_epoch = trainer.current_epoch - 1

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the NMI of a whole epoch, where there is one."""
        assert isinstance(pl_module, DecarModule)
        labels = pl_module.data.labels
        if labels is not None and "nmi" in labels.health and epoch_is_whole(trainer):
            super().on_train_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say why it ended."""
        if self.stopped_epoch and trainer.is_global_zero:
            log.info("stopped after epoch %d: NMI has not improved for %d", self.stopped_epoch + 1, self.patience)


class EpochLine(Callback):
    """One line an epoch in the log: readable where a progress bar is not, as in a file."""

    def __init__(self) -> None:
        self._began, self._told = time.monotonic(), -1

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """New labels are ready (a callback's epoch-start hook runs before the module's): say what was found."""
        assert isinstance(pl_module, DecarModule)
        labels = pl_module.data.labels
        if labels is None or labels.epoch == self._told or not trainer.is_global_zero:
            return
        self._told, health = labels.epoch, labels.health
        seconds, self._began = time.monotonic() - self._began, time.monotonic()
        log.info(
            "epoch %d/%s: %s clusters (%s), clustered in %.0f s", trainer.current_epoch + 1, trainer.max_epochs,
            "+".join(map(str, labels.sizes)), _told(health), seconds,
        )  # fmt: skip

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The epoch is over: say how well the labels were learned."""
        if not trainer.is_global_zero:
            return
        metrics: Mapping[str, Any] = trainer.callback_metrics
        loss, accuracy = metrics.get("loss_epoch", float("nan")), metrics.get("pseudo_accuracy", float("nan"))
        seconds, self._began = time.monotonic() - self._began, time.monotonic()
        log.info(
            "epoch %d/%s: loss %.3f, pseudo-label accuracy %.3f, %d%s steps in %.0f s",
            trainer.current_epoch + 1, trainer.max_epochs, float(loss), float(accuracy), trainer.fit_loop.batch_idx + 1,
            "" if epoch_is_whole(trainer) else f" of {trainer.num_training_batches}", seconds,
        )  # fmt: skip

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._began = time.monotonic()
        if trainer.is_global_zero:
            log.info("making the labels of the first epoch")


class StepBar(RichProgressBar):
    """A progress bar that reads the figures in the steps that log; a GPU would wait each time that they are read."""

    def __init__(self, refresh_rate: int) -> None:
        super().__init__(refresh_rate=refresh_rate)
        self._shown, self._reads = dict[str, Any](), True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance."""
        steps = trainer.log_every_n_steps  # type: ignore[attr-defined]
        self._reads = bool(steps) and trainer.global_step % steps == 0
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._reads = True

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The loss and what is logged for the bar, as they were read last."""
        if self._reads:
            found = trainer.callback_metrics
            loss = {"loss_step": float(found["loss_step"])} if "loss_step" in found else {}
            self._shown = {**super().get_metrics(trainer, pl_module), **loss}
        return self._shown


def _told(health: Mapping[str, float]) -> str:
    """What is known of the labels, in words."""
    words = {"entropy": "entropy %.2f", "nmi": "NMI to the last %.3f", "effective_rank": "effective rank %.0f"}
    return ", ".join(text % health[name] for name, text in words.items() if name in health)

"""The LightningModule: labels are made in `labels.py`, drawn in `sampler.py`, and predicted here."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from decar.audio import LogMelStore
from decar.clustering import faiss_on
from decar.errors import ConfigError, TrainingError
from decar.models import Encoder, Projection, PseudoLabelHeads
from decar.pretrain.checkpoint import ends_within_epoch, epoch_is_whole
from decar.pretrain.datamodule import Batch, PretrainData
from decar.pretrain.labels import EpochLabels, LabelSource, Situation
from decar.pretrain.online import OnlineLabels, Prototypes
from decar.pretrain.ranks import (
    EpochMeans,
    average_gradients,
    deal_batch,
    gather_batch,
    mean_over_ranks,
    on_rank_zero,
    share_buffers,
)
from decar.pretrain.sampler import Stream, derive_seed
from decar.pretrain.vectors import FeatureBank, Floats, Vectors, embed_dataset

_CHECK_EVERY = 10  # steps; reading the loss makes a GPU wait


Schedule = Literal["constant", "cosine"]
Features = Literal["pass", "bank"]


class DecarModule(LightningModule):
    """DECAR pre-training: cluster at the start of an epoch, then learn to predict the clusters (paper, section 3).

    Args:
        encoder: `f`.
        projection: `g`.
        source: Makes the labels of an epoch.
        augment: Applied to training batches on the device.
        optimizer: From parameter groups to an optimizer.
        head_optimizer: Options in which the heads' group differs; the released code's SGD for `p` has no momentum.
        schedule: `constant` (paper) or `cosine` to zero over all steps.
        warmup_steps: Linear warm-up before either.
        compiled: Whether a step's network, `f` and `g`, is compiled (`torch.compile`); the pass, whose batches have
            many lengths, is not.
        features: Vectors that are clustered: `pass`, of a pass over the whole set (paper, section 3.1), or `bank`,
            those of earlier training steps; see `FeatureBank`.
        seed: All randomness of a step derives from `(seed, epoch, step)`, so a resumed run repeats it; that of dropout
            also from the rank.
    """

    def __init__(
        self,
        encoder: Encoder,
        projection: Projection,
        source: LabelSource,
        augment: nn.Module,
        optimizer: Callable[[Iterable[dict[str, Any]]], Optimizer],
        *,
        head_optimizer: Mapping[str, Any] | None = None,
        schedule: Schedule = "constant",
        warmup_steps: int = 0,
        features: Features = "pass",
        compiled: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.encoder, self.projection, self.augment = encoder, projection, augment
        self.heads = PseudoLabelHeads(projection.out)  # replaced with the first labels
        self.online: Prototypes | None = None
        if isinstance(source, OnlineLabels):
            self.online = Prototypes(encoder, projection, projection.out, source)
        self.source, self.make_optimizer, self.head_optimizer = source, optimizer, dict(head_optimizer or {})
        self.schedule, self.warmup_steps, self.seed = schedule, warmup_steps, seed
        self.means = EpochMeans("loss_epoch", "pseudo_accuracy")
        self._network = torch.compile(self._project, dynamic=False) if compiled else self._project
        self.features: Features = features
        self.bank: FeatureBank | None = None  # from `setup` on
        if features not in get_args(Features):
            raise ConfigError(f"pretrain.features={features}: choose one of {', '.join(get_args(Features))}")
        if schedule not in get_args(Schedule):
            raise ConfigError(f"schedule={schedule}: choose one of {', '.join(get_args(Schedule))}")

    @property
    def data(self) -> PretrainData:
        """The data module that the trainer was given."""
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, PretrainData):
            raise ConfigError("DecarModule is trained with trainer.fit(module, datamodule=PretrainData(...))")
        return data

    def setup(self, stage: str) -> None:
        """Let the loader make labels where Lightning does not call `on_train_epoch_start`."""
        self._leave_heads_out()
        self.data.need_labels = self.ensure_labels
        if self.features == "bank" and self.bank is None:
            self.bank = FeatureBank(self.projection.out)

    def _leave_heads_out(self) -> None:
        """Exclude the heads from DistributedDataParallel, which cannot handle replaced parameters.

        `on_after_backward` averages their gradients; their initial weights depend on the seed only.
        """
        heads = [name for name, _ in self.named_parameters() if name.startswith("heads.")]
        kept = [name for name, _ in self.named_buffers() if name.startswith("online.")]  # the same on all ranks
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, heads + kept)  # type: ignore[no-untyped-call]

    def on_train_start(self) -> None:
        """Set the learning rate of this step: a resume may have changed `max_epochs`, and with it the schedule."""
        scheduler = self.lr_schedulers()
        if isinstance(scheduler, LambdaLR):
            factor = self.learning_rate_factor(scheduler.last_epoch, self._total_steps())
            for group, rate in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, strict=True):
                group["lr"] = rate * factor

    def forward(self, logmel: Tensor) -> Tensor:
        """`z`, which is clustered: log-mels `(B, 1, M, F)` to `(B, P)`."""
        return self._project(logmel)[1]

    def _project(self, logmel: Tensor) -> tuple[Tensor, Tensor]:
        """What the heads read, and `z`."""
        found: tuple[Tensor, Tensor] = self.projection(self.encoder.for_objective(logmel))
        return found

    def on_train_epoch_start(self) -> None:
        """Make the labels."""
        self.ensure_labels()

    def ensure_labels(self) -> None:
        """Make the labels of the current epoch; a run resumed within an epoch has them already. Collective."""
        data, epoch = self.data, self.current_epoch
        if data.labels is not None and data.labels.epoch == epoch:
            return
        situation = Situation(data.store, epoch=epoch, seed=self.seed, previous=data.labels)
        device = self._root_device
        with faiss_on((device.index or 0) if device.type == "cuda" else None):
            z = self._vectors() if self.source.needs_vectors(epoch) else None
            labels = self.source.assign(z, situation)
            if self.online is not None:
                labels = self._renew_online(self.online, labels, situation)
        data.set_labels(replace(labels, epoch=epoch))  # a source of a user's own may not say so
        self._renew_heads(labels.sizes, labels.kept)

    @property
    def _root_device(self) -> torch.device:
        """The device of this rank."""
        return self.trainer.strategy.root_device

    def _vectors(self) -> Vectors:
        """`z` of the set: from a pass, or from the bank once a pass has filled it."""
        if self.bank is not None and self.bank.filled:
            return self.bank.vectors()
        if self.data.store.blocks is not None:
            self.data.store.blocks.forget()  # a disk may have changed them since the last epoch; the pass reads all
        z = embed_dataset(
            self.trainer, self, self.encoder, self.data.store, dim=self.projection.out, batch_size=self.data.batch_size
        )
        if self.bank is None:
            return z
        self.bank.fill(z.gather())
        return self.bank.vectors()

    def _renew_online(self, online: Prototypes, labels: EpochLabels, situation: Situation) -> EpochLabels:
        """Cluster a fixed sample of clips by the network as it stands, which becomes the teacher. Collective."""
        clips = online.options.watched(len(situation.store), self.seed)
        z = embed_dataset(
            self.trainer, self, self.encoder, situation.store.take(clips), dim=self.projection.out,
            batch_size=self.data.batch_size, title="cluster: embedding a sample",
        ).gather()  # fmt: skip
        fitted, labels = on_rank_zero(lambda: online.options.cluster(z, clips, labels, situation))
        online.renew(self.encoder, self.projection, fitted)
        return labels

    def embed_store(self, store: LogMelStore, title: str) -> Floats:
        """Embeddings of the clips of a store: `(n, D)` on rank 0, `(0, D)` on the others. Collective."""
        encoder, size = self.encoder, self.data.batch_size
        return embed_dataset(
            self.trainer, encoder, encoder, store, dim=encoder.dim, batch_size=size, title=title
        ).gather()

    def _renew_heads(self, sizes: list[int], kept: int) -> None:
        """Reset all heads but the first `kept`, and replace them and their state in the optimizer."""
        old = set(self.heads.parameters())
        self.heads.reset(sizes, derive_seed(Stream.HEADS, self.seed, self.current_epoch), keep=kept)
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, Optimizer)
        for parameter in old - set(self.heads.parameters()):
            optimizer.state.pop(parameter, None)
        optimizer.param_groups[1]["params"] = list(self.heads.parameters())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean cross-entropy over the clusterings."""
        crops, index = batch
        targets = self.data.targets(index)
        projected, z = self._network(self._augmented(crops, batch_idx))
        if self.bank is not None:
            self.bank.add(index, z)
        logits = self.heads(projected)
        wanted: list[Tensor] = [*targets.T]
        if self.online is not None:
            wanted.append(self.online(crops))
        losses = [functional.cross_entropy(scores, y) for scores, y in zip(logits, wanted, strict=True)]
        hits = [_hits(scores, y) for scores, y in zip(logits, wanted, strict=True)]
        loss = torch.stack(losses).mean()
        self.record(loss, torch.stack(hits).mean(), index, batch_idx)
        return loss

    def record(self, loss: Tensor, hits: Tensor, index: Tensor, batch_idx: int) -> None:
        """Log the loss of a step, add it and the share of hits to the epoch's means, and refuse one that is not finite.

        Raises:
            TrainingError: The loss is NaN or Inf. On a GPU not every step is looked at.
        """
        last = batch_idx + 1 == self.trainer.num_training_batches
        if loss.device.type == "cpu" or last or (batch_idx + 1) % _CHECK_EVERY == 0:
            self._require_finite(loss, index)
        # no `prog_bar`: Lightning would read the loss after each batch, bar or not; `StepBar` shows it
        self.log("loss_step", mean_over_ranks(loss), on_step=True, on_epoch=False, batch_size=len(index))
        self.means.add(loss, hits)
        if last:
            self._log_means()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the means of an epoch that a callback has just ended, such as a time limit."""
        if ends_within_epoch(self.trainer):
            self._log_means()

    def _log_means(self) -> None:
        self.log_dict(self.means.take(), on_step=False, on_epoch=True, batch_size=1)

    def _augmented(self, crops: Tensor, step: int) -> Tensor:
        """This rank's share `(B / size, 1, M, F)` of the augmented batch, the same batch as in a single process.

        Every rank augments the whole batch from one seed, so a crop's augmentation depends on its place in the batch
        and not on its rank. Dropout in the network is drawn by each rank itself.
        """
        place = (Stream.STEP, self.seed, self.current_epoch, step)
        torch.manual_seed(derive_seed(*place))
        share = deal_batch(self.augment(gather_batch(crops)))
        if self.global_rank:
            torch.manual_seed(derive_seed(*place, self.global_rank))
        return share

    def on_after_backward(self) -> None:
        """Average the gradients that DistributedDataParallel ignores."""
        average_gradients(self.heads.parameters())

    def _require_finite(self, loss: Tensor, index: Tensor) -> None:
        if not torch.isfinite(loss):
            rate = self.trainer.optimizers[0].param_groups[0]["lr"]
            raise TrainingError(
                f"the loss is {float(loss.detach())} at epoch {self.current_epoch + 1}, in a batch of "
                f"{self.data.named(index)}: pass a lower learning rate (optimizer.lr, now "
                f"{rate:g}), or look at these clips with `decar doctor`; checkpoints and encoder of the last good "
                "epoch are kept"
            )

    def on_train_epoch_end(self) -> None:
        """Log the figures of the epoch's labels: here, since a resume within an epoch skips the start hook."""
        share_buffers(self)
        assert self.data.labels is not None
        for name, value in self.data.labels.health.items():
            self.log(name, value, prog_bar=name == "nmi", batch_size=1)

    def configure_optimizers(self) -> Any:
        """One optimizer with two groups: the network, and the heads."""
        network = [*self.encoder.parameters(), *self.projection.parameters()]
        heads = {"params": list(self.heads.parameters()), **self.head_optimizer}
        optimizer = self.make_optimizer([{"params": network}, heads])
        if self.schedule == "constant" and not self.warmup_steps:
            return optimizer
        scheduler = LambdaLR(optimizer, lambda step: self.learning_rate_factor(step, self._total_steps()))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _total_steps(self) -> float:
        """Optimizer steps of the whole run.

        `trainer.estimated_stepping_batches` would open the loader before its position is restored from a checkpoint:
        a run resumed within an epoch would restart that epoch.
        """
        batches = self.trainer.num_training_batches  # infinite until the loader is opened; step 0 does not depend on it
        return (self.trainer.max_epochs or 1) * -(-batches // self.trainer.accumulate_grad_batches)

    def learning_rate_factor(self, step: int, total: float) -> float:
        """Learning rate at a step, relative to the full one."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        if self.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - self.warmup_steps) / max(1, total - self.warmup_steps)))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the recipe, the sums of the epoch's means, and the bank."""
        checkpoint["decar"] = self._recipe()
        checkpoint["means"] = self.means.state_dict()
        if self.bank is not None:
            checkpoint["bank"] = self.bank.state_dict(within_epoch=not epoch_is_whole(self.trainer))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the number and shapes of the heads: they change with the clusterings of an epoch.

        Raises:
            TrainingError: The checkpoint was made with another network, optimizer or schedule.
        """
        theirs, ours = checkpoint.get("decar", {}), self._recipe()
        other = [key for key in ours if theirs.get(key) != ours[key]]
        if other:
            found = "; ".join(f"{key}: {theirs.get(key)} there, {ours[key]} here" for key in other)
            raise TrainingError(f"cannot go on from this checkpoint, it was made otherwise ({found})")
        if "means" in checkpoint:
            self.means.load_state_dict(checkpoint["means"])
        if self.bank is not None:
            self.bank.load_state_dict(checkpoint.get("bank", {}))
        weights = checkpoint["state_dict"]
        n_heads = sum(key.startswith("heads.") and key.endswith(".weight") for key in weights)
        sizes = [len(weights[f"heads.{h}.weight"]) for h in range(n_heads)]
        self.heads.reset(sizes, seed=0)
        self._leave_heads_out()

    def _recipe(self) -> dict[str, Any]:
        """What a checkpoint must have in common with this module."""
        optimizer = self.make_optimizer([{"params": [nn.Parameter(torch.zeros(1))]}])
        return {
            "encoder": self.encoder.settings(),
            "projection": f"{self.projection.kind} {self.projection.out}",
            "labels": type(self.source).__name__,
            "optimizer": type(optimizer).__name__,
            "schedule": self.schedule,
            "seed": self.seed,
        }


def _hits(scores: Tensor, wanted: Tensor) -> Tensor:
    """Share of rows `(B, K)` whose largest score is that of the label `(B,)`, or of the largest code `(B, K)`."""
    return (scores.argmax(1) == (wanted if wanted.ndim == 1 else wanted.argmax(1))).float().mean()

"""Fine-tuning: encoder and linear head are trained together; the best epoch on validation is tested, once.

Random crops to train on, whole clips to judge by. A batch is a pure function of (seed, epoch, place in the epoch). The
sampler yields the epoch with the clip numbers, so workers and prefetching cannot mix epochs. Letters: `B` batch, `M`
mel bands, `F` frames, `D` embedding, `C` classes.
"""

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from decar.audio.crops import collate, length_batches, random_crop
from decar.audio.store import LogMelStore
from decar.downstream.probe import classification_loss
from decar.downstream.protocol import KnnProtocol, Outcome, PaperProtocol, Protocol, Truth, measure, score
from decar.downstream.task import Task, drop_unreadable
from decar.errors import ConfigError, TaskError
from decar.models import Encoder
from decar.models.embed import embed_clips
from decar.signals import leave_to_parent

log = logging.getLogger(__name__)

WORKER_SECONDS = 300  # for one batch; after that a worker counts as stuck

T = TypeVar("T")
Indices: TypeAlias = NDArray[np.int64]
BatchKey: TypeAlias = tuple[int, Indices]  # the epoch, and which clips of the task
Batch: TypeAlias = tuple[Tensor, Tensor]  # x (B, 1, M, F) float32, y (B,) int64 or (B, C) bool
WholeBatch: TypeAlias = tuple[list[NDArray[np.float16]], Tensor]  # B log-mels (F, M) of any length, y


class EpochBatches(Sampler[BatchKey]):
    """Batches of one split in a new order each epoch; Lightning calls `set_epoch` before every epoch.

    Args:
        indices: Clips to draw, each once an epoch.
        batch_size: Clips a batch; a last batch of one clip, which BatchNorm rejects, joins the one before it.
        seed: Seeds the order, together with the epoch.
    """

    def __init__(self, indices: Indices, batch_size: int, seed: int) -> None:
        self.indices, self.seed, self.epoch = indices, seed, 0
        starts = list(range(0, len(indices), batch_size))
        if len(starts) > 1 and len(indices) - starts[-1] == 1:
            starts.pop()
        self.cuts = starts[1:]

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass that of this epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.cuts) + 1

    def __iter__(self) -> Iterator[BatchKey]:
        epoch = self.epoch
        order = np.random.default_rng([self.seed, epoch]).permutation(self.indices)
        yield from ((epoch, batch) for batch in np.split(order, self.cuts))


class Crops(Dataset[Batch]):
    """Batches of random crops, by (epoch, clip numbers)."""

    def __init__(self, task: Task, store: LogMelStore, frames: int, seed: int) -> None:
        self.task, self.store, self.frames, self.seed = task, store, frames, seed

    def __getitem__(self, key: BatchKey) -> Batch:
        epoch, batch = key
        return collate([self._crop(epoch, int(i)) for i in batch]), torch.from_numpy(self.task.y[batch])

    def _crop(self, epoch: int, index: int) -> NDArray[np.float32]:
        rng = np.random.default_rng([self.seed, epoch, index])
        return random_crop(self.store[index], self.frames, rng, silence=self.store.frontend.silence)


class WholeClips(Dataset[WholeBatch]):
    """Batches of whole clips as stored, by clip numbers."""

    def __init__(self, task: Task, store: LogMelStore) -> None:
        self.task, self.store = task, store

    def __getitem__(self, batch: Indices) -> WholeBatch:
        return [np.asarray(self.store[int(i)]) for i in batch], torch.from_numpy(self.task.y[batch])


class TaskData:
    """Loaders of a task.

    Args:
        task: The clips, classes and splits.
        store: Log-mels of the task's clips, in the task's order. Clips that could not be read (0 frames) are left out,
            counted in `task.dropped`, and warned of; silent ones stay.
        batch_size: Clips a batch.
        crop_frames: Frames of a training crop.
        seed: Seeds order and crops of training, together with the epoch.
        min_frames: Whole clips are batched by the length that the encoder pads them to: its `min_frames`,
        max_frames: and its `max_frames`.
        num_workers: Loader processes; 0 reads in the main process, which a memory map makes cheap.
    """

    def __init__(
        self,
        task: Task,
        store: LogMelStore,
        *,
        batch_size: int = 64,
        crop_frames: int = 98,
        seed: int = 0,
        min_frames: int = 98,
        max_frames: int = 998,
        num_workers: int = 0,
    ) -> None:
        if len(store) != len(task):
            raise ValueError(f"a store of {len(store)} clips for a task of {len(task)}: take(task.rows) first")
        self.task = drop_unreadable(task, store.lengths)
        self.store = store if len(self.task) == len(task) else store.take(np.flatnonzero(store.lengths > 0))
        self.batch_size, self.crop_frames, self.seed, self.num_workers = batch_size, crop_frames, seed, num_workers
        self.min_frames, self.max_frames = min_frames, max_frames

    def train_dataloader(self, *more: str) -> DataLoader[Batch]:
        """Random crops, every clip of the training split, and of those in `more`, once an epoch."""
        indices = np.flatnonzero(np.isin(self.task.split, ["train", *more]))
        order = EpochBatches(indices, self.batch_size, self.seed)
        return self._loader(Crops(self.task, self.store, self.crop_frames, self.seed), order)

    def val_dataloader(self) -> DataLoader[WholeBatch]:
        """Whole clips of the validation split."""
        return self._whole("valid")

    def test_dataloader(self) -> DataLoader[WholeBatch]:
        """Whole clips of the test split."""
        return self._whole("test")

    def _whole(self, split: str) -> DataLoader[WholeBatch]:
        indices = self.task.indices(split)
        groups = length_batches(
            self.store.lengths[indices], self.batch_size, min_frames=self.min_frames, max_frames=self.max_frames
        )
        return self._loader(WholeClips(self.task, self.store), [indices[group] for group in groups])

    def _loader(self, dataset: Dataset[T], keys: Sampler[BatchKey] | Sequence[Indices]) -> DataLoader[T]:
        return DataLoader(
            dataset,
            batch_size=None,  # the data set makes whole batches
            sampler=keys,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            timeout=WORKER_SECONDS if self.num_workers else 0,
            worker_init_fn=leave_to_parent,
        )


class FineTuner(LightningModule):
    """An encoder with a linear layer on it, all of it trained by Adam.

    Args:
        encoder: `(B, 1, M, F)` to `(B, D)`; trained in place.
        n_classes: `C`.
        lr: Learning rate of Adam.
    """

    def __init__(self, encoder: Encoder, n_classes: int, lr: float) -> None:
        super().__init__()
        self.encoder, self.lr = encoder, lr
        self.head = nn.Linear(encoder.dim, n_classes)
        self.answers: list[tuple[Tensor, Tensor]] = []  # logits and truth of the clips of this epoch so far

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, C)` of log-mels `(B, 1, M, F)`."""
        logits: Tensor = self.head(self.encoder(x))
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a batch of crops."""
        loss = classification_loss(self(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(batch[1]))
        return loss

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Crops go to the device; whole clips are put together on the CPU first, so they stay there."""
        return batch if isinstance(batch[0], list) else super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_validation_epoch_start(self) -> None:
        """Forget the answers of the epoch before."""
        self.answers.clear()

    def validation_step(self, batch: WholeBatch, batch_idx: int) -> None:
        """Keep the answers to a batch of whole clips."""
        clips, truth = batch
        vectors = embed_clips(lambda x: self.encoder(x.to(self.device)), clips, self.encoder, max(len(clips), 1))
        self.answers.append((self.head(vectors.to(self.device)).float().cpu(), truth.cpu()))

    on_test_epoch_start, test_step = on_validation_epoch_start, validation_step

    def answered(self) -> tuple[NDArray[np.float32], Truth]:
        """Logits `(N, C)` and truth of all clips judged since the last start."""
        logits, truth = (torch.cat(parts).numpy() for parts in zip(*self.answers, strict=True))
        return logits, truth

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam on everything."""
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class KeepBest(Callback):
    """Keeps the weights of the first best epoch on validation, in memory."""

    def __init__(self) -> None:
        self.valid_value, self.epoch = -1.0, -1
        self.weights: dict[str, Tensor] = {}
        self.history: list[dict[str, float | int]] = []

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare this epoch with the best so far."""
        assert isinstance(pl_module, FineTuner)
        (logits, truth), epoch = pl_module.answered(), trainer.current_epoch
        finite = bool(np.isfinite(logits).all())  # the largest of NaNs would be the first class
        value = score(logits, truth) if finite else 0.0
        self.history.append({"lr": pl_module.lr, "epoch": epoch, "valid_value": value})
        if not finite:
            log.warning("fine-tuning lr=%g, epoch %d: the network diverged (NaN or Inf)", pl_module.lr, epoch + 1)
            return
        log.info("fine-tuning lr=%g, epoch %d of %s: valid %.3f", pl_module.lr, epoch + 1, trainer.max_epochs, value)
        if value > self.valid_value:  # strictly: the first of equally good epochs
            self.valid_value, self.epoch = value, epoch
            # clone: on the CPU a state_dict is the live weights
            self.weights = {key: value.detach().cpu().clone() for key, value in pl_module.state_dict().items()}


class _Tuned(NamedTuple):
    module: FineTuner
    best: KeepBest


def fit_finetune(
    encoder: Encoder,
    task: Task,
    store: LogMelStore,
    protocol: Protocol,
    seed: int,
    *,
    crop_frames: int = 98,
    num_workers: int = 0,
    trainer_kwargs: Mapping[str, Any] | None = None,
) -> Outcome:
    """Fine-tune a copy of the encoder on a task and judge it.

    Args:
        encoder: Where the weights start; left as it is.
        task: The classes and splits.
        store: Log-mels of the task's clips, in the task's order.
        protocol: `PaperProtocol`: one learning rate; with `refit`, the encoder is then tuned anew on train and
            validation together, for as many epochs as were best. `SearchProtocol`: each of its learning rates from the
            same initial weights, the best on validation kept (the first of equals). Its `max_epochs` replaces the
            trainer's.
        seed: Seeds the head, the order, the crops and the network's own draws.
        crop_frames: Frames of a training crop.
        num_workers: Loader processes.
        trainer_kwargs: For `Trainer`: accelerator, one device, precision, progress bar. No logger, no checkpoints.

    Returns:
        The outcome; `chosen` has `lr` and `epoch` (from 0).

    Raises:
        ConfigError: `KnnProtocol`, which trains nothing; or an encoder that gives no gradients.
        TaskError: The network diverged in every epoch, or gives NaN or Inf for a test clip.
    """
    if isinstance(protocol, KnnProtocol):
        raise ConfigError("mode=finetune protocol=knn: nothing is trained; take mode=frozen")
    if not encoder.tunable:
        raise ConfigError(
            f"{encoder.description}: cannot be fine-tuned, the HEAR API gives no gradients; take mode=frozen, or name "
            "its network as torch:MODULE.FUNCTION"
        )
    data = TaskData(
        task, store, batch_size=protocol.batch_size, crop_frames=crop_frames, seed=seed, num_workers=num_workers,
        min_frames=encoder.min_frames, max_frames=encoder.max_frames,
    )  # fmt: skip
    rates = [protocol.lr] if isinstance(protocol, PaperProtocol) else list(protocol.learning_rates)
    kwargs = {**(trainer_kwargs or {}), "max_epochs": protocol.max_epochs}
    winner, history = None, list[dict[str, float | int]]()
    for lr in rates:
        tuned = _tune(encoder, data, lr, seed, kwargs)
        history += tuned.best.history
        if winner is None or tuned.best.valid_value > winner.best.valid_value:
            winner = tuned
    assert winner is not None
    if not winner.best.weights:
        tried = ", ".join(f"{lr:g}" for lr in rates)
        raise TaskError(
            f"task {task.spec.name}: the network diverged in every epoch (NaN or Inf); give a smaller learning rate "
            f"than {tried}, or the precision 32-true"
        )
    if isinstance(protocol, PaperProtocol) and protocol.refit and task.spec.shots is None:
        winner = _Tuned(_refit(encoder, data, winner, seed, kwargs), winner.best)
    with _seeded(seed):  # a loader draws a seed for its workers
        metrics, confusion = _test(winner, data, kwargs)
    best = winner.best
    return Outcome(best.valid_value, metrics, confusion, {"lr": winner.module.lr, "epoch": best.epoch}, history)


def _tune(encoder: Encoder, data: TaskData, lr: float, seed: int, kwargs: Mapping[str, Any]) -> _Tuned:
    """Train a copy of the encoder with one learning rate and put the weights of its best epoch back."""
    best = KeepBest()
    with _seeded(seed):
        module = FineTuner(copy.deepcopy(encoder), len(data.task.classes), lr)
        module.train()  # Lightning keeps the mode it finds, and a loaded encoder comes in eval mode
        _trainer(kwargs, best).fit(module, data.train_dataloader(), data.val_dataloader())
    if best.weights:
        module.load_state_dict(best.weights)
    return _Tuned(module, best)


def _refit(encoder: Encoder, data: TaskData, chosen: _Tuned, seed: int, kwargs: Mapping[str, Any]) -> FineTuner:
    """Train another copy on train and validation for the epochs up to the chosen one, at the chosen learning rate."""
    with _seeded(seed):
        module = FineTuner(copy.deepcopy(encoder), len(data.task.classes), chosen.module.lr)
        module.train()
        epochs = chosen.best.epoch + 1
        _trainer({**kwargs, "max_epochs": epochs}).fit(module, data.train_dataloader("valid"))
    return module


def _test(tuned: _Tuned, data: TaskData, kwargs: Mapping[str, Any]) -> tuple[dict[str, float], NDArray[np.int64]]:
    """Measures and confusion matrix of the test split: the one place where it is read."""
    _trainer(kwargs).test(tuned.module, data.test_dataloader(), verbose=False)
    logits, truth = tuned.module.answered()
    if not np.isfinite(logits).all():
        name = data.task.spec.name
        raise TaskError(
            f"task {name}: the tuned network diverged (NaN or Inf on test clips); give a smaller learning rate"
        )
    return measure(logits, truth)


def _trainer(kwargs: Mapping[str, Any], *callbacks: Callback) -> Trainer:
    """A trainer on one device that writes no file."""
    ours = {
        "logger": False,
        "enable_checkpointing": False,
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
        "callbacks": list(callbacks),
    }
    return Trainer(**{"devices": 1, "enable_progress_bar": False, "enable_model_summary": False, **kwargs, **ours})


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generators, from which networks draw (dropout), and restore their states afterwards."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield

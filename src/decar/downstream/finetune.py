"""Fine-tuning: encoder and linear head are trained together; the best epoch on validation is tested, once.

Letters: `B` batch, `M` mel bands, `F` frames, `D` embedding, `C` classes.
"""

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from decar.audio.store import LogMelStore
from decar.downstream.datamodule import Batch, TaskData, WholeBatch
from decar.downstream.outcome import Outcome, Truth, measure, score
from decar.downstream.probe import classification_loss
from decar.downstream.protocol import KnnProtocol, PaperProtocol, Protocol
from decar.downstream.task import Task
from decar.errors import ConfigError
from decar.models import Encoder
from decar.models.embed import embed_clips

log = logging.getLogger(__name__)


class FineTuner(LightningModule):
    """An encoder with a linear layer on it, all of it trained by Adam.

    Args:
        encoder: `(B, 1, M, F)` to `(B, D)`; trained in place.
        n_classes: `C`.
        lr: Learning rate of Adam.
    """

    def __init__(self, encoder: Encoder, n_classes: int, lr: float) -> None:
        super().__init__()
        self.encoder, self.n_classes, self.lr = encoder, n_classes, lr
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
        value, epoch = score(*pl_module.answered()), trainer.current_epoch
        self.history.append({"lr": pl_module.lr, "epoch": epoch, "valid_value": value})
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
        protocol: `PaperProtocol`: one learning rate. `SearchProtocol`: each of its learning rates from the same initial
            weights, the best on validation kept (the first of equals). Its `max_epochs` replaces the trainer's.
        seed: Seeds the head, the order, the crops and the network's own draws.
        crop_frames: Frames of a training crop.
        num_workers: Loader processes.
        trainer_kwargs: For `Trainer`: accelerator, precision, progress bar. One device; no logger, no checkpoints.

    Returns:
        The outcome; `chosen` has `lr` and `epoch` (from 0).

    Raises:
        ConfigError: `KnnProtocol`, which trains nothing.
    """
    if isinstance(protocol, KnnProtocol):
        raise ConfigError("mode=finetune protocol=knn: nothing is trained; take mode=frozen")
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
    module.load_state_dict(best.weights)
    return _Tuned(module, best)


def _test(tuned: _Tuned, data: TaskData, kwargs: Mapping[str, Any]) -> tuple[dict[str, float], NDArray[np.int64]]:
    """Measures and confusion matrix of the test split: the one place where it is read."""
    _trainer(kwargs).test(tuned.module, data.test_dataloader(), verbose=False)
    return measure(*tuned.module.answered())


def _trainer(kwargs: Mapping[str, Any], *callbacks: Callback) -> Trainer:
    """A trainer on one device that writes no file."""
    ours = {
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
        "callbacks": list(callbacks),
    }
    return Trainer(**{"enable_progress_bar": False, "enable_model_summary": False, **kwargs, **ours})


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generators, from which networks draw (dropout), and restore their states afterwards."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield

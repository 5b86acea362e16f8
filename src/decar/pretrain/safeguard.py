"""Nothing is lost to a long epoch, nor to a scheduler that wants its machine back."""

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import distributed

from decar.errors import PreemptedError

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # what schedulers send before they kill
_AGREE_EVERY = 10  # steps between two questions to the other processes whether one was told to stop


class Safeguard(Callback):
    """Write the checkpoint of a run within its epochs: every so often, and when a scheduler asks it to stop.

    On SIGTERM or SIGUSR1 the step is finished, the checkpoint written and PreemptedError raised, in all processes after
    the same step. Outside of steps, as while clustering, the last checkpoint is as good as a new one: it ends at once.
    Nothing is written after an epoch's last step, since the epoch's own checkpoint is about to be.

    Args:
        path: The checkpoint that is replaced.
        minutes: Time between two checkpoints.
    """

    def __init__(self, path: str | Path, minutes: float = 10) -> None:
        self.path, self.minutes = Path(path), minutes
        self._signal, self._stepping, self._saved = 0, False, time.monotonic()
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over from Lightning, whose handlers talk to other processes while a signal is handled."""
        self._saved = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._told) for number in SIGNALS}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give them back."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give them back here too."""
        self.on_train_end(trainer, pl_module)

    def _told(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        if not self._stepping:
            raise PreemptedError(number)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """From here on a signal waits for the end of the step."""
        self._stepping = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write, if it is time to."""
        last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        alone = trainer.world_size == 1
        if last or not (alone or (batch_idx + 1) % _AGREE_EVERY == 0):
            return
        told, due = self._signal, int(time.monotonic() - self._saved > 60 * self.minutes)
        if not alone:
            told, due = _highest(told, due, device=trainer.strategy.root_device)
        if told or due:
            trainer.save_checkpoint(self.path)
            self._saved = time.monotonic()
        if told:
            raise PreemptedError(told)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Its checkpoint is written by others; the one within the next epoch counts its minutes from here."""
        self._saved = time.monotonic()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A signal of the last step has waited until its epoch was saved; those to come need not wait."""
        self._stepping = False
        if self._signal and trainer.world_size == 1:
            raise PreemptedError(self._signal)


def _highest(*values: int, device: torch.device) -> list[int]:
    """The highest of each value that any process has."""
    told = torch.tensor(values, device=device)
    distributed.all_reduce(told, distributed.ReduceOp.MAX)
    return [int(value) for value in told.tolist()]


@contextmanager
def stoppable() -> Iterator[None]:
    """Before and after training nothing needs to be saved: the signals end the job at once, in good order."""

    def told(number: int, frame: FrameType | None) -> None:
        raise PreemptedError(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, told) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""How training ends: at the end of an epoch, within one, or because a signal asks it to stop.

What an epoch and a run are is asked of the trainer. An epoch that is cut short (`trainer.max_time`) leaves a checkpoint
from within it, so that a resume continues with its next batch.
"""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint, Timer
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason
from torch import distributed

from decar import signals

_AGREE_EVERY = 10  # steps between two questions to the other processes whether one was told to stop


def epoch_is_whole(trainer: Trainer) -> bool:
    """Whether the batch that ran last is the last one of its epoch."""
    return trainer.fit_loop.epoch_loop.batch_progress.is_last_batch


def ends_within_epoch(trainer: Trainer) -> bool:
    """Whether training ends after this batch although its epoch has more of them."""
    return trainer.should_stop and trainer.fit_loop._can_stop_early and not epoch_is_whole(trainer)


def gradients_wait(trainer: Trainer) -> bool:
    """Whether there are accumulated gradients that no optimizer step has used yet: checkpoints do not hold them."""
    return trainer.fit_loop._should_accumulate()


def is_finished(trainer: Trainer) -> bool:
    """Whether the run came to its end, by `max_epochs` or an early stop; one cut short by a time limit can go on."""
    loop = trainer.fit_loop
    if not epoch_is_whole(trainer):
        return False
    reasons = [c.stopping_reason for c in trainer.callbacks if isinstance(c, EarlyStopping)]  # type: ignore[attr-defined]
    stopped = any(reason != EarlyStoppingReason.NOT_STOPPED for reason in reasons) and loop._can_stop_early
    return stopped or trainer.current_epoch >= (trainer.max_epochs or 0)


class TimeLimit(Timer):
    """`trainer.max_time`: end training, within an epoch too, when this call has trained for so long.

    Lightning's own counts over resumes: the same command given again would end at once.

    Args:
        duration: `DD:HH:MM:SS`, or a mapping such as `{minutes: 30}`.
    """

    def __init__(self, duration: str | Mapping[str, int]) -> None:
        super().__init__(duration if isinstance(duration, str) else dict(duration), verbose=False)

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Look at the clock, but after whole optimizer steps only."""
        if not gradients_wait(trainer):
            super().on_train_batch_end(trainer, *args, **kwargs)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: each call has the whole time."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to take."""


class EpochCheckpoint(ModelCheckpoint):
    """A ModelCheckpoint of whole epochs, and of epochs whose `monitor` exists: the first ones have no NMI.

    Without `monitor` it also saves when training ends within an epoch, from there: a resume continues with the next
    batch.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where training ends within an epoch; Lightning calls this after the callbacks that may end it."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self.monitor is None and ends_within_epoch(trainer):
            with signals.saving():
                trainer.save_checkpoint(self.format_checkpoint_name(self._monitor_candidates(trainer)))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, if the epoch is whole and has the figure."""
        known = self.monitor is None or self.monitor in trainer.callback_metrics
        if known and epoch_is_whole(trainer):
            super().on_train_epoch_end(trainer, pl_module)


class Safeguard(Callback):
    """Write the checkpoint of a run within its epochs: every so often, and when a signal asks it to stop.

    On a signal of `decar.signals` the step is finished, the checkpoint written and PreemptedError raised, in all
    processes after the same step. Outside of steps, as while clustering, the last checkpoint is as good as a new one:
    the first process ends at once, and the others with it. Nothing is written after an epoch's last step, since the
    epoch's own checkpoint is about to be.

    Args:
        path: The checkpoint that is replaced.
        minutes: Time between two checkpoints.
    """

    def __init__(self, path: str | Path, minutes: float = 10) -> None:
        self.path, self.minutes = Path(path), minutes
        self._saved = time.monotonic()
        self._handlers = ExitStack()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over from Lightning, whose handlers talk to other processes while a signal is handled."""
        self._saved = time.monotonic()
        self._handlers.enter_context(signals.stoppable(leads=trainer.is_global_zero))
        self._handlers.callback(signals.restore, signals.install())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give them back."""
        signals.defer(False)
        self._handlers.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give them back here too."""
        self.on_train_end(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """From here on a signal waits for the end of the step."""
        signals.defer(True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write, if it is time to."""
        signals.defer(True, hurry=not epoch_is_whole(trainer))  # a probe may come before the epoch's checkpoint
        alone = trainer.world_size == 1
        if epoch_is_whole(trainer) or gradients_wait(trainer) or not (alone or trainer.global_step % _AGREE_EVERY == 0):
            return
        number, due = signals.asked(), int(time.monotonic() - self._saved > 60 * self.minutes)
        if not alone:
            number, due = _highest(number, due, device=trainer.strategy.root_device)
        if number or due:
            with signals.saving():
                trainer.save_checkpoint(self.path)
            self._saved = time.monotonic()
        if number:
            raise signals.stop(number)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Its checkpoint is written by others; the one within the next epoch counts its minutes from here."""
        self._saved = time.monotonic()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop for a signal that came in the last steps, now that their epoch is saved; raise at once from here on."""
        signals.defer(False)  # before the question: a signal in between is not lost
        number = signals.asked()
        if trainer.world_size > 1:
            (number,) = _highest(number, device=trainer.strategy.root_device)
        if number:
            raise signals.stop(number)


def _highest(*values: int, device: torch.device) -> list[int]:
    """The highest of each value that any process has."""
    told = torch.tensor(values, device=device)
    distributed.all_reduce(told, distributed.ReduceOp.MAX)
    return [int(value) for value in told.tolist()]

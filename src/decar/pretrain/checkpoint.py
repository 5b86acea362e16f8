"""Checkpoints: when they are written, also within an epoch, and how, so that each is complete or absent.

Lightning writes atomically only where /tmp is on the same disk. A checkpoint is a zip file, and torch compares nothing
when it loads one: its comment holds a digest of the file.
"""

import contextlib
import logging
import os
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning_utilities.core.apply_func import apply_to_collection
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint, Timer
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason

import decar
from decar import signals
from decar.digests import check_zip, seal_zip
from decar.errors import ConfigError, TrainingError, require
from decar.files import advice
from decar.pretrain.aside import bring_back, lost_aside, put_aside, sweep
from decar.pretrain.ranks import max_over_ranks, rank_and_size

log = logging.getLogger(__name__)

_AGREE_EVERY = 10  # steps after which the ranks compare whether one was asked to stop; a GPU waits for that
LAST = "last.ckpt"  # a resume starts from it


def previous_of(checkpoint: Path) -> Path:
    """Where the checkpoint before `last.ckpt` is kept.

    >>> previous_of(Path("last.ckpt")).name
    'last.previous.ckpt'
    """
    return checkpoint.with_suffix(f".previous{checkpoint.suffix}")


def damage_of(path: Path) -> str:
    """What is wrong with the file of a checkpoint; empty where it is as it was written.

    A file without a digest was written by an earlier version: the CRC-32 of its records is compared, which is slower.
    """
    try:
        with open(path, "rb", buffering=0) as file, zipfile.ZipFile(file) as records:
            if any(record.compress_type != zipfile.ZIP_STORED for record in records.infolist()):
                return "it has packed records, which decar never writes"  # a small file could hold terabytes
            broken = None if check_zip(file) else records.testzip()
    except Exception as error:  # zipfile raises half a dozen kinds
        return " ".join(str(error).split())[:120] or type(error).__name__
    return f"record {broken} does not match its checksum" if broken else ""


def last_good(last: Path) -> str:
    """`last.ckpt`, or where it is damaged the checkpoint before it.

    Raises:
        ConfigError: See `readable`.
    """
    reason, previous = _fault_of(last), previous_of(last)
    if reason and previous.is_file() and not _fault_of(previous):
        log.warning("%s is damaged (%s): going on from the one before, %s", last, reason, previous.name)
        return readable(previous, "")
    return readable(last, reason)


def _fault_of(path: Path) -> str:
    """What is wrong with a checkpoint, or with the files beside it that hold a part of it."""
    return damage_of(path) or lost_aside(path)


def readable(path: Path, reason: str | None = None) -> str:
    """The path of an undamaged checkpoint; loads it without running code that it may hold.

    Args:
        path: The checkpoint.
        reason: What is wrong with it, where that is known.

    Raises:
        ConfigError: It is damaged, or not a checkpoint of decar.
    """
    reason = _fault_of(path) if reason is None else reason
    whole = "is best.ckpt beside it whole?"
    require(not reason, f"{path}: not a readable checkpoint ({reason}): it is damaged or something else; {whole}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        complete = isinstance(checkpoint, dict) and {"state_dict", "optimizer_states", "loops"} <= set(checkpoint)
    except Exception as error:  # torch raises half a dozen kinds for a file that is cut or is something else
        reason = " ".join(str(error).split())[:120]
        raise ConfigError(f"{path}: not a readable checkpoint ({reason}); {whole}") from error
    require(complete, f"{path}: not a checkpoint of decar; give the .ckpt file of a run")
    return str(path)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write beside the target, sync, rename; the previous `last.ckpt` is kept. See `aside` for large tensors."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write one checkpoint.

        Raises:
            TrainingError: The disk is full, read-only or gone; the file that was there before still is.
        """
        target = Path(path)
        part = target.with_name(f".{target.name}.part")  # the run folder is locked: no other job writes it
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            lean = put_aside(checkpoint, target.parent)
            with open(part, "w+b") as file:
                torch.save(lean, file)
                seal_zip(file)
                file.flush()
                os.fsync(file.fileno())
            if target.name == LAST and target.is_file():
                _keep(target)
            os.replace(part, target)
        except (OSError, RuntimeError) as error:  # torch's writer has the second for a full disk
            raise TrainingError(
                f"{target}: the checkpoint could not be written ({' '.join(str(error).split())[:120]}): "
                f"{advice(error)}. What was there before is kept: run the same command with resume=auto to go on"
            ) from error
        finally:
            part.unlink(missing_ok=True)
        if lean is not checkpoint:
            sweep(target.parent)

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> Any:
        """Read one checkpoint, without running code that it may hold, and on rank 0 what lies beside it.

        Weights stay in the file until they are copied into the network, which saves the time that `damage_of` takes.
        What the optimizer and the callbacks keep is copied here: later changes of the file do not change it.

        Raises:
            TrainingError: A file beside it is missing or damaged.
        """
        found = torch.load(path, map_location, mmap=True, weights_only=True)
        kept = {key: value for key, value in found.items() if key != "state_dict"}
        checkpoint = {**found, **apply_to_collection(kept, torch.Tensor, torch.clone)}
        return checkpoint if rank_and_size()[0] else bring_back(checkpoint, Path(path).parent)


def _keep(target: Path) -> None:
    """Keep the checkpoint that is about to be replaced under a second name, unless it is damaged and that is not."""
    previous = previous_of(target)
    if previous.is_file() and damage_of(target):
        return
    previous.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # a file system without hard links keeps one checkpoint
        os.link(target, previous)


class RunRecord(Callback):
    """Store the run's options and the identity of its sounds in every checkpoint, as plain values.

    Args:
        options: All options by dotted key.
        content: `Identity.content` of the sounds.
        n_clips: `N`.
        opened: Options that were left open, and picked.
    """

    def __init__(self, options: dict[str, Any], content: str, n_clips: int, opened: Sequence[str] = ()) -> None:
        self.record = {
            "options": options, "content": content, "n_clips": n_clips, "open": [*opened], "version": decar.__version__,
        }  # fmt: skip

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the record and the number of processes, under the key `run`."""
        checkpoint["run"] = {**self.record, "processes": trainer.world_size}


@dataclass(frozen=True)
class Record:
    """The record of its run in a checkpoint.

    Attributes:
        options: Plain values by dotted key; empty if unknown.
        content: `Identity.content` of its sounds; empty if unknown.
        n_clips: `N`.
        version: Of decar; empty in checkpoints of earlier versions, which have no record.
        processes: How many trained; 0 if unknown.
        epochs: Begun epochs; all but the last are complete.
    """

    options: dict[str, Any]
    content: str
    n_clips: int
    version: str
    processes: int
    epochs: int


def read_record(checkpoint: Path) -> Record:
    """The record that `RunRecord` has stored in a checkpoint; of one without it, only the epochs are known."""
    found = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    loop = found.get("loops", {}).get("fit_loop", {})
    complete = loop.get("epoch_progress", {}).get("current", {}).get("processed", 0)
    within = loop and not loop.get("epoch_loop.batch_progress", {}).get("is_last_batch", True)
    run = found.get("run") or {}
    return Record(
        options=run.get("options", {}), content=run.get("content", ""), n_clips=run.get("n_clips", 0),
        version=run.get("version", ""), processes=run.get("processes", 0), epochs=complete + bool(within),
    )  # fmt: skip


def epoch_is_whole(trainer: Trainer) -> bool:
    """Whether the latest batch is the last one of its epoch."""
    return trainer.fit_loop.epoch_loop.batch_progress.is_last_batch


def ends_within_epoch(trainer: Trainer) -> bool:
    """Whether training ends after this batch although its epoch has more of them."""
    return trainer.should_stop and trainer.fit_loop._can_stop_early and not epoch_is_whole(trainer)


def gradients_wait(trainer: Trainer) -> bool:
    """Whether accumulated gradients wait for an optimizer step: checkpoints do not hold them."""
    return trainer.fit_loop._should_accumulate()


def is_finished(trainer: Trainer) -> bool:
    """Whether the run is complete, by `max_epochs` or an early stop; after a time limit it can be resumed."""
    loop = trainer.fit_loop
    if not epoch_is_whole(trainer):
        return False
    reasons = [c.stopping_reason for c in trainer.callbacks if isinstance(c, EarlyStopping)]  # type: ignore[attr-defined]
    stopped = any(reason != EarlyStoppingReason.NOT_STOPPED for reason in reasons) and loop._can_stop_early
    return stopped or trainer.current_epoch >= (trainer.max_epochs or 0)


class TimeLimit(Timer):
    """`trainer.max_time`: end training, also within an epoch, after this much time in this call.

    Lightning's Timer counts over resumes: the same command given again would end at once.

    Args:
        duration: `DD:HH:MM:SS`, or a mapping such as `{minutes: 30}`.
    """

    def __init__(self, duration: str | Mapping[str, int]) -> None:
        super().__init__(duration if isinstance(duration, str) else dict(duration), verbose=False)

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Check the time after an optimizer step; of several ranks, in the steps in which they agree."""
        agree = trainer.world_size == 1 or trainer.global_step % _AGREE_EVERY == 0
        if agree and not gradients_wait(trainer):
            super().on_train_batch_end(trainer, *args, **kwargs)

    def state_dict(self) -> dict[str, Any]:
        """Empty: each call has the full time."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Ignore it."""


class EpochCheckpoint(ModelCheckpoint):
    """A ModelCheckpoint of complete epochs in which `monitor` was logged: the first ones have no NMI.

    Without `monitor` it also saves where training ends within an epoch; a resume continues with the next batch.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore which epoch was the best, in a folder that has moved too: Lightning would let a worse one replace it.

        Where its file was not taken along, the best of the epochs to come is kept.
        """
        folder, best = Path(self.dirpath or ""), state_dict["best_model_path"]
        there = best and (folder / Path(best).name).is_file()
        super().load_state_dict(_moved(state_dict, folder) if there else state_dict)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where training ends within an epoch; Lightning calls this after the callbacks that may end it."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self.monitor is None and ends_within_epoch(trainer):
            with signals.saving():
                trainer.save_checkpoint(self.format_checkpoint_name(self._monitor_candidates(trainer)))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if the epoch is complete and has the figure."""
        known = self.monitor is None or self.monitor in trainer.callback_metrics
        if known and epoch_is_whole(trainer):
            super().on_train_epoch_end(trainer, pl_module)


def _moved(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The state of a ModelCheckpoint with its files in a folder."""

    def here(path: str) -> str:
        return str(folder / Path(path).name) if path else path

    paths = {key: here(state[key]) for key in ("best_model_path", "kth_best_model_path", "last_model_path")}
    scores = {here(path): score for path, score in state["best_k_models"].items()}
    return {**state, **paths, "best_k_models": scores, "dirpath": str(folder)}


class Safeguard(Callback):
    """Write a checkpoint within epochs, at intervals and when a signal asks the run to stop.

    On a signal of `decar.signals` the step is finished, the checkpoint written and PreemptedError raised, on all ranks
    after the same step. Outside of steps, as while clustering, nothing has changed since the last checkpoint: rank 0
    ends at once, and the others with it. Nothing is written after an epoch's last step, since the epoch's own
    checkpoint follows.

    Args:
        path: The checkpoint that is replaced.
        minutes: Between two checkpoints.
    """

    def __init__(self, path: str | Path, minutes: float = 10) -> None:
        self.path, self.minutes = Path(path), minutes
        self._saved = time.monotonic()
        self._handlers = contextlib.ExitStack()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's signal handlers, which call collective operations within the handler.

        Without them its broadcast before each batch, of whether SIGTERM came, is of no use, and makes a GPU wait.
        """
        self._saved = time.monotonic()
        self._handlers.enter_context(signals.stoppable(leads=trainer.is_global_zero))
        self._handlers.callback(signals.restore, signals.install())
        loop: Any = trainer.fit_loop.epoch_loop
        loop._broadcast_sigterm_tensor = lambda: None
        self._handlers.callback(delattr, loop, "_broadcast_sigterm_tensor")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the handlers."""
        signals.defer(False)
        self._handlers.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the handlers."""
        self.on_train_end(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Defer signals to the end of the step."""
        signals.defer(True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write if it is time to."""
        signals.defer(True, hurry=not epoch_is_whole(trainer))  # a probe may come before the epoch's checkpoint
        alone = trainer.world_size == 1
        if epoch_is_whole(trainer) or gradients_wait(trainer) or not (alone or trainer.global_step % _AGREE_EVERY == 0):
            return
        number, due = max_over_ranks(signals.asked(), int(time.monotonic() - self._saved > 60 * self.minutes))
        if number or due:
            with signals.saving():
                trainer.save_checkpoint(self.path)
            self._saved = time.monotonic()
        if number:
            raise signals.stop(number)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the minutes from here: another callback writes the epoch's checkpoint."""
        self._saved = time.monotonic()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop for a signal of the last steps, now that their epoch is saved; until the next step, raise at once."""
        signals.defer(False)  # before `asked`, so that no signal in between is lost
        (number,) = max_over_ranks(signals.asked())
        if number:
            raise signals.stop(number)

"""Checkpoints that are whole or not there, whose damage is noticed, and of which the last but one is kept.

Lightning's own writing is atomic only where /tmp is on the same disk. A checkpoint is a zip file in which torch writes
a CRC-32 of every record and compares none when it loads.
"""

import contextlib
import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning import Callback, LightningModule, Trainer

import decar
from decar.errors import TrainingError
from decar.files import advice

LAST = "last.ckpt"  # what a run goes on from


def previous_of(checkpoint: Path) -> Path:
    """Where the checkpoint before `last.ckpt` is kept.

    >>> previous_of(Path("last.ckpt")).name
    'last.previous.ckpt'
    """
    return checkpoint.with_suffix(f".previous{checkpoint.suffix}")


def damage_of(path: Path) -> str:
    """What is wrong with the file of a checkpoint; empty where it is as it was written.

    The time is that of reading the file and its CRC-32: 1 GB takes about a second.
    """
    try:
        with zipfile.ZipFile(path) as records:
            if any(record.compress_type != zipfile.ZIP_STORED for record in records.infolist()):
                return "it has packed records, which decar never writes"  # a small file could hold terabytes
            broken = records.testzip()
    except Exception as error:  # zipfile raises half a dozen kinds
        return " ".join(str(error).split())[:120] or type(error).__name__
    return f"record {broken} does not match its checksum" if broken else ""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, forces it to the disk, renames; of `last.ckpt` the one before stays."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write one checkpoint.

        Raises:
            TrainingError: The disk is full, read-only or gone; the file that was there before still is.
        """
        target = Path(path)
        part = target.with_name(f".{target.name}.part")  # the run folder is locked: no other job writes it
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(part, "wb") as file:
                torch.save(checkpoint, file)
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


def _keep(target: Path) -> None:
    """Give the checkpoint that is about to be replaced a second name; a damaged one does not replace a good one."""
    previous = previous_of(target)
    if previous.is_file() and damage_of(target):
        return
    previous.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # a file system without hard links keeps one checkpoint
        os.link(target, previous)


class RunRecord(Callback):
    """Keep in every checkpoint what the run was asked for and which sounds it learns from, as plain values.

    Args:
        options: All options by dotted key.
        content: `Identity.content` of the sounds.
        n_clips: `N`.
    """

    def __init__(self, options: dict[str, Any], content: str, n_clips: int) -> None:
        self.record = {"options": options, "content": content, "n_clips": n_clips, "version": decar.__version__}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the record and the number of processes, under the key `run`."""
        checkpoint["run"] = {**self.record, "processes": trainer.world_size}

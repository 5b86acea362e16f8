"""Checkpoints that are whole or not there: Lightning's own writing is atomic only where /tmp is on the same disk."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning import Callback, LightningModule, Trainer

import decar
from decar.errors import TrainingError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, forces it to the disk, renames: the one before stays until the new is whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write one checkpoint.

        Raises:
            TrainingError: The disk is full or gone; the file that was there before still is.
        """
        target = Path(path)
        part = target.with_name(f".{target.name}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(part, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, target)
        except (OSError, RuntimeError) as error:  # torch's writer has the second for a full disk
            raise TrainingError(
                f"{target}: the checkpoint could not be written ({' '.join(str(error).split())[:120]}); is the disk "
                "full? What was there before is kept: make room and run the same command with resume=auto"
            ) from error
        finally:
            part.unlink(missing_ok=True)


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

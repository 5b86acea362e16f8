"""One DataModule for every task: random crops to train on, whole clips to judge by.

A batch is a pure function of (seed, epoch, place in the epoch). The sampler yields the epoch with the clip numbers, so
workers and prefetching cannot mix epochs.
"""

from collections.abc import Iterator, Sequence
from typing import TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from decar.audio.crops import collate, length_batches, random_crop
from decar.audio.store import LogMelStore
from decar.downstream.task import Task, drop_unreadable
from decar.signals import leave_to_parent

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


class TaskData(LightningDataModule):
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
        super().__init__()
        if len(store) != len(task):
            raise ValueError(f"a store of {len(store)} clips for a task of {len(task)}: take(task.rows) first")
        self.task = drop_unreadable(task, store.lengths)
        self.store = store if len(self.task) == len(task) else store.take(np.flatnonzero(store.lengths > 0))
        self.batch_size, self.crop_frames, self.seed, self.num_workers = batch_size, crop_frames, seed, num_workers
        self.min_frames, self.max_frames = min_frames, max_frames

    def train_dataloader(self) -> DataLoader[Batch]:
        """Random crops, every training clip once an epoch."""
        order = EpochBatches(self.task.indices("train"), self.batch_size, self.seed)
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

"""Crops and pseudo-labels: the part of the data that changes with every epoch.

Lightning creates the training iterator sometimes before and sometimes after `on_train_epoch_start`, and loader workers
prefetch. So that no batch has a stale order, the iterator here is a generator: nothing runs before the first `next()`,
which comes after the hook. The data set yields `(crop, index)`; the label of an index is looked up in the main process,
so no worker can hold a stale one.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from decar.audio import LogMelStore
from decar.audio.crops import as_input, stack
from decar.errors import ConfigError, StoreError, TrainingError
from decar.pretrain.labels import EpochLabels
from decar.pretrain.ranks import rank_and_size
from decar.pretrain.sampler import Stream, UniformClusterSampler, derive_seed
from decar.signals import leave_to_parent

Draws = NDArray[np.int64]  # (…, 2): dataset index, first frame of its crop
Stored = tuple[Tensor, Tensor, Tensor]  # crops (B, F, M) float16, frames (B,) that each has, dataset indices (B,)
Batch = tuple[Tensor, Tensor]  # (B, 1, M, F), (B,)
GPU_WORKERS = 2  # processes that read crops where a GPU trains


class CropDataset(Dataset[Stored]):
    """Crops of stored clips, one batch at a time, as they are stored: they become float32 on the device."""

    def __init__(self, store: LogMelStore, crop_frames: int) -> None:
        self.store, self.crop_frames = store, crop_frames

    def __len__(self) -> int:
        return len(self.store)

    def __getitems__(self, draws: Draws) -> Stored:
        """The batch of some draws `(B, 2)`."""
        crops = self.store.crops(draws.tolist(), self.crop_frames)
        return *stack(crops, self.crop_frames), torch.from_numpy(draws[:, 0].copy())


class Loader(Protocol):
    """The batches of the trainer's current epoch, whenever it is iterated over."""

    def close(self) -> None:
        """End the processes or threads that read."""
        ...


class EpochLoader:
    """The batches of the trainer's current epoch; nothing runs before the first `next()`.

    Its state is `{epoch, done}`, so that a run resumed within an epoch continues with the next batch.
    """

    def __init__(self, data: "PretrainData") -> None:
        self._data = data
        self._pending: list[Draws] = []  # batches still to come; always this list, which the loader iterates over
        self.epoch, self.done = -1, 0
        on_gpu = data.on_gpu()
        workers = data.num_workers if data.num_workers is not None else GPU_WORKERS * on_gpu
        self._loader: DataLoader[Stored] = DataLoader(
            CropDataset(data.store, data.crop_frames),
            batch_sampler=self._pending,  # type: ignore[arg-type]
            collate_fn=_as_is,
            num_workers=workers,
            persistent_workers=data.persistent_workers and workers > 0,
            pin_memory=data.pin_memory if data.pin_memory is not None else on_gpu,
            timeout=data.timeout if workers else 0,
            worker_init_fn=leave_to_parent,
        )

    def __len__(self) -> int:
        return self._data.steps_per_epoch

    def __iter__(self) -> Iterator[Stored]:
        epoch = self._data.current_epoch()
        self._data.need_labels()  # the hook does not run in the epoch after a checkpoint of a last batch
        self.done = self.done if self.epoch == epoch else 0
        self.epoch = epoch
        self._pending[:] = [*self._data.batches(epoch)[self.done :]]
        for batch in self._loader:
            self.done += 1
            yield batch

    def close(self) -> None:
        """End the workers: those of a loader that is left to the collector of garbage take 5 s each to end."""
        if (iterator := self._loader._iterator) is not None:
            iterator._shutdown_workers()  # type: ignore[attr-defined]  # as Lightning does with loaders that it knows
            self._loader._iterator = None

    def state_dict(self) -> dict[str, int]:
        """The position in the epoch."""
        return {"epoch": self.epoch, "done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from a position."""
        self.epoch, self.done = int(state["epoch"]), int(state["done"])


def _as_is(batch: Any) -> Any:
    return batch


def share_of_batch(batch_size: int, processes: int) -> int:
    """Crops per step and process.

    Raises:
        ConfigError: The batch is not divisible; the mean gradient would weight crops of unequal shares differently.
    """
    share, rest = divmod(batch_size, processes)
    if rest:
        sizes = [str(processes * n) for n in (share, share + 1) if n]
        raise ConfigError(
            f"loader.batch_size={batch_size} is the batch of all {processes} processes together and does not divide "
            f"among them: pass loader.batch_size={' or '.join(sizes)}, or another trainer.devices"
        )
    return share


def steps_for(n_clips: int, draws_per_clip: float, batch_size: int) -> int:
    """Whole batches of an epoch of `n_clips × draws_per_clip` crops, at least one."""
    return max(1, int(n_clips * draws_per_clip) // batch_size)


def whole_clip_frames(lengths: NDArray[np.int64], min_frames: int, max_frames: int) -> int:
    """Frames that whole clips are padded to with silence: those of the longest, between the encoder's bounds.

    One length for all batches, so that a clip's input depends neither on its batch nor on the number of processes. Of a
    clip longer than `max_frames` a random piece of that length is taken.

    >>> whole_clip_frames(np.array([48, 300]), 98, 998), whole_clip_frames(np.array([48, 5000]), 98, 998)
    (300, 998)
    """
    return int(np.clip(lengths.max(), min_frames, max_frames))


class PretrainData(LightningDataModule):
    """Balanced batches of crops, and their labels.

    Args:
        store: Log-mels of the `N` clips to learn from.
        crop_frames: Length of a crop in frames (98 = 1 s). None: whole clips, see `whole_clip_frames`.
        batch_size: Crops per step, over all processes.
        draws_per_clip: An epoch is `N × draws_per_clip` crops: the distance between two clusterings. The paper passes
            once over the data; on a small set that is too few steps for a fresh head to learn anything.
        every_n_steps: Length of an epoch in steps; overrides `draws_per_clip`.
        num_workers: Processes that read crops; None: 2 where a GPU trains, otherwise 0, which is fastest while the
            store fits in memory.
        seed: With the epoch it determines order and crops.
        persistent_workers: Keep workers over epochs; forking anew each epoch hung under DDP (gh-112275).
        pin_memory: Use pinned memory for faster copies to a GPU; None: where a GPU trains.
        timeout: Seconds after which a worker that has not returned its batch is considered stuck.
        min_frames: Of whole clips, as of the encoder.
        max_frames: See `min_frames`.
    """

    def __init__(
        self,
        store: LogMelStore,
        *,
        crop_frames: int | None = 98,
        batch_size: int = 64,
        draws_per_clip: float = 1.0,
        every_n_steps: int | None = None,
        num_workers: int | None = None,
        persistent_workers: bool = True,
        pin_memory: bool | None = None,
        timeout: float = 300,
        min_frames: int = 98,
        max_frames: int = 998,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not len(store):
            raise StoreError("no usable clip to learn from; see bad_files.csv for the reasons")
        self.store, self.batch_size = store, batch_size
        self.crop_frames = crop_frames or whole_clip_frames(store.lengths, min_frames, max_frames)
        self.draws_per_clip, self.num_workers, self.seed = draws_per_clip, num_workers, seed
        self.persistent_workers, self.pin_memory, self.every_n_steps = persistent_workers, pin_memory, every_n_steps
        self.timeout = timeout
        self.labels: EpochLabels | None = None
        self._loader: Loader | None = None
        self.need_labels: Callable[[], None] = lambda: None  # the module puts its own clustering here
        self._targets = torch.empty(0, 0, dtype=torch.int64)

    def setup(self, stage: str) -> None:
        """Check that the batch is divisible among the processes (raises ConfigError)."""
        share_of_batch(self.batch_size, rank_and_size()[1])

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch, at least one. Never changes during a run."""
        if self.every_n_steps is not None:
            return self.every_n_steps
        return steps_for(self.n_clips, self.draws_per_clip, self.batch_size)

    @property
    def n_clips(self) -> int:
        """Clips to learn from."""
        return len(self.store)

    def named(self, index: Tensor) -> str:
        """The clips of dataset indices `(B,)`, for an error."""
        return self.store.named(index.cpu().numpy())

    def current_epoch(self) -> int:
        """The trainer's epoch, or 0 when the loader is used without one."""
        return self.trainer.current_epoch if self.trainer is not None else 0

    def on_gpu(self) -> bool:
        """Whether the trainer trains on a CUDA device; without a trainer, no."""
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    def set_labels(self, labels: EpochLabels) -> None:
        """Use these labels from the next batch on."""
        if labels.labels.shape[0] != len(self.store):
            raise StoreError(f"labels of {labels.labels.shape[0]} clips do not fit a store of {len(self.store)}")
        whole = labels.views * rank_and_size()[1]
        if labels.views > 1 and self.batch_size % whole:
            raise ConfigError(
                f"loader.batch_size={self.batch_size}: {labels.views} crops of a clip are in a batch, in one process: "
                f"pass loader.batch_size={(self.batch_size // whole + 1) * whole}"
            )
        self.labels, self._targets = labels, torch.from_numpy(labels.labels)

    def targets(self, index: Tensor) -> Tensor:
        """Pseudo-labels `(B, H)` of dataset indices `(B,)`, on the device of `index`."""
        if self._targets.device != index.device:
            self._targets = self._targets.to(index.device)
        return self._targets[index]

    def batches(self, epoch: int) -> Draws:
        """This rank's share `(steps, B / size, 2)` of the draws of an epoch: a pure function of seed, epoch and labels.

        Batch `b` is balanced over the clusters of clustering `b mod H`. Where each clip has two crops in a batch, its
        second half has the clips of the first, in their order. One generator draws the places of all crops of the
        epoch and all ranks, so a crop depends on its place in the epoch alone. Several ranks divide the batch that one
        process would train on: the crop at place `p` goes to rank `p mod size`.
        """
        if self.labels is None:
            raise StoreError("batches were asked for before there were labels")
        columns, views = self.labels.labels.T, self.labels.views
        if not len(columns):  # uniform over the clips
            columns = np.zeros((1, len(self.store)), np.int64)
        steps, rounds = self.steps_per_epoch, -(-self.steps_per_epoch // len(columns))
        drawn = [self._draw(column, h, epoch, (rounds, self.batch_size // views)) for h, column in enumerate(columns)]
        indices = np.tile(np.stack(drawn, axis=1).reshape(-1, self.batch_size // views)[:steps], views)
        room = np.maximum(self.store.lengths[indices] - self.crop_frames, 0)
        firsts = np.random.default_rng(derive_seed(Stream.CROPS, self.seed, epoch)).integers(room + 1)
        rank, size = rank_and_size()
        return np.stack([indices, firsts], axis=-1)[:, rank::size]

    def _draw(self, column: NDArray[np.int64], h: int, epoch: int, shape: tuple[int, int]) -> NDArray[np.int64]:
        """Indices `(batches, clips)`, balanced over the clusters of one clustering."""
        seed = derive_seed(Stream.ORDER, self.seed, h) if h else self.seed
        sampler = UniformClusterSampler(column, math.prod(shape), seed=seed)
        sampler.set_epoch(epoch)
        return sampler.draw().reshape(shape)

    def train_dataloader(self) -> Loader:
        """The loader of all epochs."""
        self._loader = EpochLoader(self)
        return self._loader

    def teardown(self, stage: str) -> None:
        """End the loader's processes or threads."""
        if self._loader is not None:
            self._loader.close()

    def on_after_batch_transfer(self, batch: Stored, dataloader_idx: int) -> Batch:
        """The crops as the encoder takes them, computed on the device, and their dataset indices."""
        crops, frames, index = batch
        return as_input(crops, frames, self.store.frontend.silence), index

    def state_dict(self) -> dict[str, Any]:
        """Labels and their epoch, as plain tensors and numbers (loadable with `weights_only=True`)."""
        if self.labels is None:
            return {}
        now = self.labels
        return {
            "labels": torch.from_numpy(now.labels.astype(np.int32)),
            "sizes": now.sizes,
            "epoch": now.epoch,
            "health": now.health,
            "kept": now.kept,
            "views": now.views,
            "sample": None if now.sample is None else torch.from_numpy(now.sample),
            "clips": self._clips_hash(),
            "steps_per_epoch": self.steps_per_epoch,
            "batch_size": self.batch_size,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the labels.

        Raises:
            TrainingError: The checkpoint was made with other clips, epochs of another length or other batches.
        """
        if not state:
            return
        if state["clips"] != self._clips_hash():
            raise TrainingError(
                f"the checkpoint belongs to other sounds ({len(state['labels'])} clips, here {len(self.store)}): "
                "give the data it was made with, or start anew without resume"
            )
        if state["steps_per_epoch"] != self.steps_per_epoch:
            raise TrainingError(
                f"the checkpoint has epochs of {state['steps_per_epoch']} steps, here they have "
                f"{self.steps_per_epoch}: give the loader.batch_size and sampler options it was made with"
            )
        if state.get("batch_size", self.batch_size) != self.batch_size:
            raise TrainingError(
                f"the checkpoint was made with batches of {state['batch_size']} crops over all processes, here "
                f"they have {self.batch_size}: give loader.batch_size={state['batch_size']}"
            )
        labels = state["labels"].numpy().astype(np.int64)
        sizes, health, sample = list(state["sizes"]), dict(state["health"]), state.get("sample")
        kept, views = int(state.get("kept", 0)), int(state.get("views", 1))
        watched = None if sample is None else sample.numpy()
        self.set_labels(EpochLabels(labels, sizes, int(state["epoch"]), health, kept, views, watched))

    def _clips_hash(self) -> str:
        table = self.store.manifest.table
        return self.store.manifest.content_hash(*(name for name in ("path", "start", "duration") if name in table))

"""A pre-training run small enough for a test: a tiny network over synthetic log-mels."""

from functools import partial

import numpy as np
import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn

from decar.audio import SpecAugment
from decar.clustering import Assignment, KMeans
from decar.models import Projection
from decar.pretrain import DecarModule, NetworkLabels, PretrainData


class TinyEncoder(nn.Module):
    """Stands in for an Encoder: one convolution, BatchNorm (whose state must survive), global max."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.network = nn.Sequential(nn.Conv2d(1, 8, (8, 5), (4, 3)), nn.BatchNorm2d(8), nn.ReLU())
        self.min_frames, self.max_frames, self.dim, self.device = 32, 96, 8, torch.device("cpu")
        from decar.audio import FrontEnd

        self.frontend = FrontEnd()

    def forward(self, x):
        return self.network(x).amax(dim=(2, 3))

    for_objective = forward

    def settings(self):
        return {"name": "tiny"}


class SameClusters:
    """A clusterer that finds the same two clusters each time: NMI 1 from the second clustering on."""

    seed, k = 0, 2

    def with_seed(self, seed):
        return self

    def fit_predict(self, features):
        return Assignment(np.arange(len(features)) % 2, 2, 0.0)


class Recorder(Callback):
    """Writes down every (epoch, index, target seen in the loss), and the labels each epoch had at its first batch."""

    def __init__(self):
        self.pairs, self.labels, self.losses = [], {}, []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        labels = trainer.datamodule.labels
        assert labels.epoch == trainer.current_epoch, "trained on the labels of another epoch"
        self.labels.setdefault(trainer.current_epoch, labels.labels.copy())

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        _, index = batch
        self.pairs.append((trainer.current_epoch, index.clone(), pl_module.seen_targets.clone()))
        self.losses.append(float(outputs["loss"]))


class SpyModule(DecarModule):
    """Keeps the targets that the loss was really computed with."""

    def training_step(self, batch, batch_idx):
        real = self.data.targets

        def spy(index):
            self.seen_targets = real(index)
            return self.seen_targets

        self.data.targets = spy
        try:
            return super().training_step(batch, batch_idx)
        finally:
            self.data.targets = real


def build(
    store, *, clusterers=None, seed=0, num_workers=0, persistent_workers=True, draws_per_clip=2.0, optimizer=None,
    module=SpyModule, source=None, encoder=None, **kwargs
):  # fmt: skip
    encoder = encoder or TinyEncoder(seed)
    data = PretrainData(
        store, crop_frames=32, batch_size=8, draws_per_clip=draws_per_clip, num_workers=num_workers, seed=seed,
        persistent_workers=persistent_workers,
    )  # fmt: skip
    optimizer = optimizer or partial(torch.optim.SGD, lr=0.05, momentum=0.9)
    source = source or NetworkLabels(clusterers or [KMeans(k=4, n_iter=5)], dim=4)
    projection = Projection(getattr(encoder, "objective_dim", 8), 8, seed=seed)
    model = module(
        encoder, projection, source, SpecAugment(freq_width=4, time_width=4), optimizer,
        head_optimizer=kwargs.pop("head_optimizer", {"momentum": 0.0}), seed=seed, **kwargs,
    )  # fmt: skip
    return model, data


def fit(model, data, folder, *, epochs=3, callbacks=(), every_n_steps=None, ckpt_path=None, **kwargs):
    recorder = Recorder()
    saver = ModelCheckpoint(
        folder, filename="{epoch}-{step}", save_top_k=-1, every_n_train_steps=every_n_steps,
        every_n_epochs=None if every_n_steps else 1, save_on_train_epoch_end=None if every_n_steps else True,
    )  # fmt: skip
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, callbacks=[recorder, saver, *callbacks], default_root_dir=folder,
            **{"logger": False, **kwargs},
    )  # fmt: skip
    trainer.fit(model, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return trainer, recorder

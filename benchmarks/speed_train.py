"""The pass and the step through the real Lightning path, against the bare network on ready tensors.

The floor of the pass is the encoder's forward in `torch.inference_mode`; that of the step is forward, backward and SGD
on one ready batch. Both use the same weights, memory format, threads and precision as ours, in turn with it, within one
`trainer.fit`: loader, crops, augmentation, projection, heads, hooks, logging and progress bar are all in ours.
"""

import copy
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from pytorch_lightning import Callback, LightningModule, Trainer
from rig import Line, alternate, line, seconds
from torch import Tensor

from decar.audio import FrontEnd, LogMelStore, Manifest
from decar.cli.config import conf_dir
from decar.cli.train import all_clips, build_module
from decar.models import Encoder
from decar.models.encode import batches_by_length, whole_clips
from decar.models.encoder import evaluating
from decar.pretrain import DecarModule, PretrainData, ResumableCSVLogger
from decar.pretrain.embed import embed_dataset

PAPER = ["experiment=paper", "k=64"]
SMALL = ["experiment=small", "budget=null", "k=64", "sampler.every_n_steps=155", "trainer.max_epochs=4"]
TEN_SECONDS = 998  # frames


def settings(*words: str) -> DictConfig:
    """The configuration that `python train.py WORDS` would have."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("train", overrides=list(words))


def noise_store(n_clips: int, frames: int, folder: Path) -> LogMelStore:
    """Clips of one length, read from disk like any: what is in them does not matter for speed."""
    spec = FrontEnd()
    mel = np.memmap(folder / "mel.f16", np.float16, "w+", shape=(n_clips * frames, spec.n_mels))
    mel[:] = np.random.default_rng(0).normal(-4, 2, mel.shape).astype(np.float16)
    manifest = Manifest(pd.DataFrame({"path": [f"{i}.wav" for i in range(n_clips)]}), folder)
    lengths = np.full(n_clips, frames, np.int64)
    return LogMelStore(manifest, spec, mel, np.arange(n_clips) * frames, lengths, [""] * n_clips, f"noise{n_clips}")


class Compare(Callback):
    """Times the pass before training, then blocks of steps, each in turn with the bare network.

    Args:
        store: For the pass.
        runs: Pairs of each.
        block: Steps at a time; 0: no steps, only the pass.
    """

    def __init__(self, store: LogMelStore, runs: int, block: int) -> None:
        self.store, self.runs, self.block = store, runs, block
        self._device = torch.device("cpu")
        self.passes: list[tuple[float, float]] = []
        self.steps: list[tuple[float, float]] = []
        self._bare: Callable[[], None] = lambda: None
        self._began = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The pass."""
        assert isinstance(pl_module, DecarModule)
        encoder, module, self._device = pl_module.encoder, pl_module, trainer.strategy.root_device

        def ours() -> None:
            embed_dataset(trainer, module, encoder, self.store, dim=module.projection.out, batch_size=64)

        self.passes = alternate(ours, bare_pass(encoder, self.store, self._device), self.runs)
        self._bare = bare_step(encoder, self.block, self._device)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The steps: from the end of one bare block to the beginning of the next, all that happens is ours."""
        if not self.block:
            trainer.should_stop = True
        elif (batch_idx + 1) % self.block == 0:
            settled(self._device)
            ours, reference = time.perf_counter() - self._began, seconds(self._bare)
            if self._began:
                self.steps.append((ours / self.block, reference / self.block))
            trainer.should_stop = len(self.steps) == self.runs
            self._began = time.perf_counter()


def settled(device: torch.device) -> None:
    """Wait until a GPU has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bare_pass(encoder: Encoder, store: LogMelStore, device: torch.device) -> Callable[[], None]:
    """The encoder alone on the batches of a pass, as tensors that are ready on the device."""
    batches = batches_by_length(store, np.arange(len(store)), encoder, 64)
    ready = [whole_clips(store, batch, encoder).to(device) for batch in batches]

    def forward() -> None:
        with evaluating(encoder), torch.inference_mode():
            for clips in ready:
                encoder.network(clips)
        settled(device)

    return forward


def bare_step(
    encoder: Encoder, n: int, device: torch.device, batch_size: int = 64, frames: int = 98
) -> Callable[[], None]:
    """`n` steps of a copy of the encoder on one batch."""
    twin: Encoder = copy.deepcopy(encoder).train()
    optimizer = torch.optim.SGD(twin.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-5)
    crops: Tensor = torch.randn(batch_size, 1, encoder.frontend.n_mels, frames, device=device) * 2 - 4

    def step() -> None:
        for _ in range(n):
            optimizer.zero_grad()
            twin.network(crops).square().mean().backward()
            optimizer.step()
        settled(device)

    return step


@contextmanager
def trained(
    cfg: DictConfig, *callbacks: Callback, store: LogMelStore | None = None, device: str = "cpu"
) -> Iterator[Trainer]:
    """Fit as configured, with the CSV log, the progress bar and these callbacks."""
    with tempfile.TemporaryDirectory() as folder:
        clips = store or all_clips(cfg).usable()
        data = PretrainData(clips, **cfg.loader, **cfg.sampler, seed=0)
        trainer = Trainer(
            max_epochs=cfg.trainer.max_epochs, accelerator=device, devices=1, use_distributed_sampler=False,
            enable_model_summary=False, enable_checkpointing=False, num_sanity_val_steps=0, log_every_n_steps=10,
            logger=ResumableCSVLogger(folder), callbacks=list(callbacks), default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(build_module(cfg, clips), datamodule=data)
        yield trainer


def measure(runs: int = 5, device: str = "cpu") -> list[Line]:
    """Pass and step, the paper's network and the recipe's."""
    lines = []
    for name, words, block in (("EfficientNet-B0", PAPER, 4), ("recipe's network", SMALL, 20)):
        cfg = settings(*words, "trainer.max_epochs=100")
        compare = Compare(all_clips(cfg).usable(), runs, block)
        with trained(cfg, compare, device=device):
            lines.append(
                line(f"pass, bundled sounds, {name}", compare.passes, target=">= 0.95", note="bare forward / ours")
            )
            lines.append(
                line(f"step, {name}", compare.steps, target=">= 0.95", note="bare forward + backward + SGD / ours")
            )
        with tempfile.TemporaryDirectory() as folder:
            long = noise_store(48 if block < 10 else 256, TEN_SECONDS, Path(folder))
            compare = Compare(long, runs, 0)
            with trained(settings(*words, "k=8", "trainer.max_epochs=1"), compare, store=long, device=device):
                lines.append(
                    line(f"pass, 10 s clips, {name}", compare.passes, target=">= 0.95", note="bare forward / ours")
                )
    return lines
